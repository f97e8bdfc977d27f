"""Saliency and frame features from what a vision tower computes, as the official code takes them."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["PoolingHead", "mean_query_attention", "pool_to_grid", "window_order"]

CHUNK = 2**24  # elements of the queries that are rotated at a time, so that float32 copies stay small


class PoolingHead:
    """SigLIP's attention pooling head with the layer norm before it, which LLaVA's checkpoints leave out.

    Not a submodule of the model, so that it is not saved with it.

    Args:
        source: a ``SiglipVisionModel``, or the pooling head alone.
        tower: the model's vision tower, whose layer norm serves where the source has none.

    Raises:
        ValueError: the source holds no pooling head.
    """

    def __init__(self, source: nn.Module, tower: nn.Module) -> None:
        head = source if hasattr(source, "probe") else _named(source, "head")
        norm = _named(source, "post_layernorm") or _named(tower, "post_layernorm")
        if head is None or not hasattr(head, "probe") or norm is None:
            raise ValueError(
                f"saliency: got a {type(source).__name__} without a SigLIP pooling head, want a SiglipVisionModel "
                "with one (vision_use_head) or the head itself"
            )
        parameter = next(tower.parameters())
        if not any(head is module for module in tower.modules()):
            head = head.to(parameter.device, parameter.dtype).eval().requires_grad_(False)
            norm = norm.to(parameter.device, parameter.dtype)
        self.head, self.norm = head, norm

    @torch.no_grad()
    def __call__(self, hidden_states: Tensor) -> tuple[Tensor, Tensor]:
        """From (T, P, C) features of the tower: attention of the probe (T, P), mean over heads, and output (T, C)."""
        channels = self.head.probe.shape[-1]
        if hidden_states.shape[-1] != channels:
            raise ValueError(
                f"saliency: the pooling head takes {channels} channels, the model's selected vision features have "
                f"{hidden_states.shape[-1]}"
            )
        found: list[Tensor] = []
        hook = self.head.attention.register_forward_hook(lambda module, args, output: found.append(output[1]))
        try:
            pooled = self.head(self.norm(hidden_states.to(self.head.probe.device, self.head.probe.dtype)))
        finally:
            hook.remove()
        return found[0][:, 0], pooled


def _named(module: nn.Module, name: str) -> nn.Module | None:
    """The submodule of this name, wherever the version of transformers has it."""
    return next((child for path, child in module.named_modules() if path.split(".")[-1] == name), None)


def pool_to_grid(saliency: Tensor) -> Tensor:
    """(T, S * S) by patch to (T, ceil(S / 2)^2) by token, bilinear, as LLaVA-OneVision pools its tokens."""
    side = math.isqrt(saliency.shape[1])
    pooled = F.interpolate(saliency.view(-1, 1, side, side).float(), size=[math.ceil(side / 2)] * 2, mode="bilinear")
    return pooled.flatten(1)


@torch.no_grad()
def mean_query_attention(
    qkv: Tensor, position_embeddings: tuple[Tensor, Tensor], heads: int, grids: list[tuple[int, int, int]], merge: int
) -> list[Tensor]:
    """Attention of each frame's mean query to its merged tokens, in the order of the patches.

    Keys are averaged over each merge group of ``merge`` consecutive patches, logits scaled by the root of the head's
    channels, and the softmax is averaged over the heads.

    Args:
        qkv: (P, 3 * C) projections of the patches of all videos, the queries first, then the keys.
        position_embeddings: (P, C / heads) cosines and sines of the rotary embedding.
        heads: of the attention.
        grids: (T, H, W) frames, and rows and columns of patches a frame, of each video.
        merge: patches that make up a token.

    Returns:
        (T, H * W / merge) float32 of each video.
    """
    cos, sin = (part.float()[:, None] for part in position_embeddings)
    query, key, _ = qkv.unflatten(-1, (3, heads, -1)).unbind(1)
    found, start = [], 0
    for frames, height, width in grids:
        patches = height * width
        step = max(1, CHUNK // max(1, patches * heads * query.shape[-1]))
        parts = []
        for first in range(0, frames, step):
            count = min(step, frames - first)
            here = slice(start + first * patches, start + (first + count) * patches)
            rotated_query = _rotated(query[here], cos[here], sin[here]).unflatten(0, (count, patches)).mean(1)
            rotated_key = _rotated(key[here], cos[here], sin[here])
            rotated_key = rotated_key.unflatten(0, (count, patches // merge, merge)).mean(2)
            logits = torch.einsum("fhc,fkhc->fhk", rotated_query, rotated_key) / math.sqrt(query.shape[-1])
            parts.append(logits.softmax(-1).mean(1))
        found.append(torch.cat(parts) if parts else qkv.new_zeros((0, patches // merge), dtype=torch.float32))
        start += frames * patches
    return found


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    x = x.float()
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin


def window_order(visual: nn.Module, grid_thw: Tensor) -> Tensor | None:
    """The token at each place of the tower's last block, where that works in windows; None where in order."""
    if not hasattr(visual, "window_size"):
        return None
    if hasattr(visual, "get_window_index"):  # transformers 4.x and the first 5.x
        index: Any = visual.get_window_index(grid_thw)[0]
        return index
    from transformers.vision_utils import get_vision_window_index

    return get_vision_window_index(
        grid_thw,
        spatial_merge_size=visual.spatial_merge_size,
        window_size=visual.window_size,
        patch_size=visual.patch_size,
    )[0]
