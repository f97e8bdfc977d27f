"""What is particular to a family of models: where its tokens, its saliency and its frame features come from."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..config import PruneConfig
from ..prompt import PrunedVideo
from ..prompt_layout import Grid, to_device
from .saliency import PoolingHead, mean_query_attention, pool_to_grid, window_order

__all__ = ["FAMILIES", "EncodedVideo", "Family", "LlavaOnevision", "QwenVL"]

SIGLIP = "google/siglip-so400m-patch14-384"


@dataclasses.dataclass
class EncodedVideo:
    """What the vision tower makes of a video.

    Attributes:
        grid: (T, H, W) frames, and rows and columns of tokens.
        tokens: (T, N, D).
        saliency: (T, N); None for "norm".
        frame_features: (T, C); None for the mean of the tokens.
        pruned: its kept tokens, once :meth:`prune` was called.
    """

    grid: Grid
    tokens: Tensor
    saliency: Tensor | None
    frame_features: Tensor | None
    pruned: PrunedVideo | None = None

    def prune(self, config: PruneConfig) -> PrunedVideo:
        """Its kept tokens, which are made once."""
        if self.pruned is None or self.pruned.config != config:
            self.pruned = PrunedVideo(self.tokens, self.saliency, self.frame_features, config)
        return self.pruned


class Family:
    """One model, with hooks on its vision tower.

    Attributes:
        newline: the newline tokens of its videos, as in :func:`fastvid_ext.prune_embeddings`.
        preset: its official parameters.
        encodes_video: whether the vision tower is at work on a video, and not on an image.
        ready: called with the videos as soon as all of their tokens are under way.
    """

    newline = "none"
    preset: Callable[[], PruneConfig]

    def __init__(self, inner: nn.Module) -> None:
        self.inner = inner
        self.encodes_video = False
        self.ready: Callable[[list[EncodedVideo]], None] | None = None

    def hooks(self) -> list[Any]:
        """Register the hooks on the vision tower."""
        raise NotImplementedError

    def returned(self, features: Any) -> None:
        """Behind the model's ``get_video_features``.

        Args:
            features: of the videos, as transformers 5 has them in its output's ``pooler_output``.
        """


class LlavaOnevision(Family):
    """The attention of SigLIP's pooling head, and its output."""

    newline = "one"
    preset = PruneConfig.llava_onevision

    def __init__(self, inner: nn.Module, saliency: str | nn.Module | None) -> None:
        super().__init__(inner)
        self.frames = 0
        self.saliency: Tensor | None = None
        self.frame_features: Tensor | None = None
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
        return [self.inner.multi_modal_projector.register_forward_pre_hook(self._rank)]

    @torch.compiler.disable
    def _rank(self, module: nn.Module, args: tuple[Tensor]) -> None:
        # The projector takes the features that the model selected, of all frames.
        if not self.encodes_video:
            return
        self.frames = len(args[0])
        if self.head is not None:
            weights, self.frame_features = self.head(args[0])
            self.saliency = pool_to_grid(weights)

    def returned(self, features: Any) -> None:
        config = self.inner.config.vision_config
        side = math.ceil(config.image_size // config.patch_size / 2)
        count = len(features)
        frames = self.frames // count
        # transformers 5 puts the newline token behind them here, transformers 4 later.
        tokens = features[:, : frames * side**2].unflatten(1, (frames, side**2))
        ranked_by, compared_by = self.saliency, self.frame_features
        self.saliency = self.frame_features = None
        self.ready(
            [
                EncodedVideo(
                    (frames, side, side),
                    tokens[i],
                    None if ranked_by is None else ranked_by.unflatten(0, (count, frames))[i],
                    None if compared_by is None else compared_by.unflatten(0, (count, frames))[i],
                )
                for i in range(count)
            ]
        )


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
        self.position_embeddings: Any = None
        self.saliency: list[Tensor] | None = None

    def hooks(self) -> list[Any]:
        visual = self.inner.visual
        hooks = [
            visual.register_forward_pre_hook(self._begin, with_kwargs=True),
            visual.merger.register_forward_hook(self._merged),
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
        grid_thw = kwargs["grid_thw"] if "grid_thw" in kwargs else args[1]
        self.grids = [tuple(grid) for grid in grid_thw.tolist()]

    @torch.compiler.disable
    def _keep_positions(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        if self.encodes_video:
            self.position_embeddings = kwargs["position_embeddings"]

    @torch.compiler.disable
    def _attend(self, module: nn.Module, args: tuple, output: Tensor) -> None:
        if not self.encodes_video:
            return
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
    def _merged(self, module: nn.Module, args: tuple, tokens: Tensor) -> None:
        # Not any later: the model waits for the tower, to put its tokens in order and to cut them by video.
        if not self.encodes_video:
            return
        visual, saliency = self.inner.visual, self.saliency
        self.saliency = None
        merge = visual.spatial_merge_size
        grids = [(frames, height // merge, width // merge) for frames, height, width in self.grids]
        sizes = [math.prod(grid) for grid in grids]
        flat = None if saliency is None else torch.cat([part.flatten() for part in saliency])
        order = window_order(visual, torch.tensor(self.grids))
        if order is not None:  # the tower saw the tokens window by window
            order = to_device(order, tokens.device)
            tokens = torch.empty_like(tokens).index_copy_(0, order, tokens)
            flat = None if flat is None else torch.empty_like(flat).scatter_(0, order, flat)
        ranked_by = [None] * len(grids) if flat is None else flat.split(sizes)
        self.ready(
            [
                EncodedVideo(
                    (frames, height, width),
                    part.view(frames, height * width, -1),
                    None if weights is None else weights.view(frames, height * width),
                    None,
                )
                for (frames, height, width), part, weights in zip(grids, tokens.split(sizes), ranked_by)
            ]
        )


# By the class that holds vision tower and language model.
FAMILIES: dict[str, type[LlavaOnevision] | type[QwenVL]] = {
    "LlavaOnevisionModel": LlavaOnevision,
    "Qwen2VLModel": QwenVL,
    "Qwen2_5_VLModel": QwenVL,
    "Qwen3VLModel": QwenVL,
}
