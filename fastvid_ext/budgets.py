"""What the frames of a video will keep, which follows from its frame features."""

from __future__ import annotations

import torch
from torch import Tensor

from .config import PruneConfig

__all__ = ["budgets"]


def budgets(frame_features: Tensor, tokens_per_frame: int, config: PruneConfig) -> tuple[Tensor, Tensor, Tensor]:
    """(T,) int32 each: segments, salient tokens and centres of the frames of one video, from its (T, C) features."""
    segment_ids, similarity = torch.ops.fastvid.segment(frame_features, **config.to_kwargs("segment"))
    num_salient, num_context = torch.ops.fastvid.plan(
        segment_ids, similarity, tokens_per_frame, **config.to_kwargs("plan")
    )
    return segment_ids, num_salient, num_context
