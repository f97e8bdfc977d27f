"""What is particular to a family of models: where its tokens, its saliency and its frame features come from."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..config import PruneConfig
from ..prompt import mean_features
from .saliency import PoolingHead, mean_query_attention, pool_to_grid, window_order

__all__ = ["FAMILIES", "EncodedVideos", "Family", "LlavaOnevision", "QwenVL"]

SIGLIP = "google/siglip-so400m-patch14-384"


@dataclasses.dataclass(frozen=True)
class EncodedVideos:
    """What a prune needs to know of the V videos of one call of the vision tower.

    Attributes:
        grids: (T, H, W) of each, frames and rows and columns of tokens; None where the tower does not know.
        saliency: (T, N) of each, or of all frames in one; None for "norm".
        frame_features: (T, C) likewise; None for the mean of the tokens.
    """

    grids: list[tuple[int, int, int]] | None
    saliency: list[Tensor] | None
    frame_features: list[Tensor] | None


class Family:
    """One model, with hooks on its vision tower.

    Attributes:
        newline: the newline tokens of its videos, as in :func:`fastvid_ext.prune_embeddings`.
        preset: its official parameters.
        on_encoded: called with what the vision tower encodes, while the device is still busy with that; None: not.
    """

    newline = "none"
    preset: Callable[[], PruneConfig]

    def __init__(self, inner: nn.Module) -> None:
        self.inner = inner
        self.on_encoded: Callable[[EncodedVideos], None] | None = None

    def hooks(self) -> list[Any]:
        """Register the hooks on the vision tower."""
        raise NotImplementedError

    def videos(self, call: dict[str, Any], encoded: EncodedVideos) -> EncodedVideos:
        """The same, by video: a call of the model knows what the tower may not."""
        return encoded

    def keep(self, encoded: EncodedVideos, output: Any) -> None:
        """Hand over what was encoded, and keep it on the tower's output: `generate` of transformers 5 encodes ahead of
        the model's call, and hands that on.
        """
        if hasattr(output, "to_tuple"):
            output.fastvid = encoded
        if self.on_encoded is not None:
            self.on_encoded(encoded)


class LlavaOnevision(Family):
    """The attention of SigLIP's pooling head, and its output."""

    newline = "one"
    preset = PruneConfig.llava_onevision

    def __init__(self, inner: nn.Module, saliency: str | nn.Module | None) -> None:
        super().__init__(inner)
        self.output: Any = None
        self.head = None if saliency == "norm" else self._pooling_head(saliency)

    def _pooling_head(self, saliency: str | nn.Module | None) -> PoolingHead:
        tower = self.inner.vision_tower
        if isinstance(saliency, str):
            from transformers import SiglipVisionModel

            saliency = SiglipVisionModel.from_pretrained(saliency)
        elif saliency is None:
            if not any(hasattr(module, "probe") for module in tower.modules()):
                raise ValueError(
                    "saliency: this model's vision tower has no SigLIP pooling head (LLaVA-OneVision checkpoints leave "
                    f"it out); pass the name of the checkpoint that the tower comes from (saliency={SIGLIP!r}), a "
                    "SiglipVisionModel, its pooling head, or 'norm' for the lengths of the tokens"
                )
            saliency = tower
        elif not isinstance(saliency, nn.Module):
            raise TypeError(f"saliency: got {saliency!r}, want None, 'norm', the name of a checkpoint, or a module")
        return PoolingHead(saliency, tower)

    def hooks(self) -> list[Any]:
        return [
            self.inner.vision_tower.register_forward_hook(self._keep_output),
            self.inner.multi_modal_projector.register_forward_pre_hook(self._encode),
        ]

    @torch.compiler.disable
    def _keep_output(self, module: nn.Module, args: tuple, output: Any) -> None:
        self.output = output

    @torch.compiler.disable
    def _encode(self, module: nn.Module, args: tuple[Tensor]) -> None:
        # The projector takes the features that the model selected; images come first, so the last call is the videos'.
        saliency = features = None
        if self.head is not None:
            weights, pooled = self.head(args[0])
            saliency, features = [pool_to_grid(weights)], [pooled]
        self.keep(EncodedVideos(None, saliency, features), self.output)
        self.output = None

    def videos(self, call: dict[str, Any], encoded: EncodedVideos) -> EncodedVideos:
        config = self.inner.config.vision_config
        side = math.ceil(config.image_size // config.patch_size / 2)
        pixels = call.get("pixel_values_videos")
        if pixels is not None:
            count, frames = pixels.shape[:2]
        else:
            features = call["mm_encoder_outputs"]["video"].pooler_output
            count, frames = len(features), features.shape[1] // side**2
        if encoded.saliency is None:
            return EncodedVideos([(frames, side, side)] * count, None, None)
        # Beams repeat the videos after they were encoded, hence the number that was encoded.
        saliency, compared = encoded.saliency[0].split(frames), encoded.frame_features[0].split(frames)
        return EncodedVideos([(frames, side, side)] * len(saliency), list(saliency), list(compared))


class QwenVL(Family):
    """The attention of each frame's mean query in the last block of the vision tower; the mean of its tokens."""

    preset = PruneConfig.qwen2_vl

    def __init__(self, inner: nn.Module, saliency: str | nn.Module | None) -> None:
        super().__init__(inner)
        if saliency not in (None, "norm"):
            raise ValueError(
                f"saliency: got {saliency!r}, want None or 'norm': {type(inner).__name__} takes its saliency from the "
                "last block of its vision tower"
            )
        self.attention = saliency is None
        self.grid_thw: Tensor | None = None
        self.position_embeddings: Any = None
        self.saliency: list[Tensor] | None = None

    def hooks(self) -> list[Any]:
        visual = self.inner.visual
        hooks = [
            visual.register_forward_pre_hook(self._begin, with_kwargs=True),
            visual.register_forward_hook(self._end),
        ]
        if self.attention:
            last = visual.blocks[-1].attn
            hooks += [
                last.register_forward_pre_hook(self._keep_positions, with_kwargs=True),
                last.qkv.register_forward_hook(self._attend),
            ]
        return hooks

    @torch.compiler.disable
    def _begin(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        self.grid_thw = kwargs["grid_thw"] if "grid_thw" in kwargs else args[1]
        self.grids = [tuple(grid) for grid in self.grid_thw.tolist()]

    @torch.compiler.disable
    def _keep_positions(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        self.position_embeddings = kwargs["position_embeddings"]

    @torch.compiler.disable
    def _attend(self, module: nn.Module, args: tuple, output: Tensor) -> None:
        visual = self.inner.visual
        self.saliency = mean_query_attention(
            output,
            self.position_embeddings,
            visual.blocks[-1].attn.num_heads,
            self.grids,
            visual.spatial_merge_size**2,
        )
        self.position_embeddings = None

    @torch.compiler.disable
    def _end(self, module: nn.Module, args: tuple, output: Any) -> None:
        visual, saliency = self.inner.visual, self.saliency
        merge = visual.spatial_merge_size
        order = None if saliency is None else window_order(visual, self.grid_thw)
        if order is not None:
            # The blocks saw the tokens window by window.
            flat = torch.cat([part.flatten() for part in saliency])
            flat = torch.empty_like(flat).scatter_(0, order.to(flat.device), flat)
            parts = flat.split([part.numel() for part in saliency])
            saliency = [part.view(whole.shape) for part, whole in zip(parts, saliency)]
        grids = [(frames, height // merge, width // merge) for frames, height, width in self.grids]
        tokens = _merged_tokens(output).split([math.prod(grid) for grid in grids])
        features = [mean_features(part.unflatten(0, (grid[0], -1))) for part, grid in zip(tokens, grids)]
        self.saliency = self.grid_thw = None
        self.keep(EncodedVideos(grids, saliency, features), output)


def _merged_tokens(output: Any) -> Tensor:
    """(V, D) the tokens of all videos: transformers 4 gives them alone, or in a tuple with DeepStack's."""
    if hasattr(output, "pooler_output"):
        return output.pooler_output
    return output if isinstance(output, Tensor) else output[0]


# By the class that holds vision tower and language model.
FAMILIES: dict[str, type[LlavaOnevision] | type[QwenVL]] = {
    "LlavaOnevisionModel": LlavaOnevision,
    "Qwen2VLModel": QwenVL,
    "Qwen2_5_VLModel": QwenVL,
    "Qwen3VLModel": QwenVL,
}
