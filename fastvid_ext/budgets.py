"""What the frames of a video will keep: known from its frame features, before its tokens are there."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .config import PruneConfig, retained_count

__all__ = ["HostCopy", "KeptCounts", "budgets"]


def budgets(frame_features: Tensor, tokens_per_frame: int, config: PruneConfig) -> tuple[Tensor, Tensor, Tensor]:
    """(T,) int32 each: segments, salient tokens and centres of the frames of one video, from its (T, C) features."""
    segment_ids, similarity = torch.ops.fastvid.segment(frame_features, **config.to_kwargs("segment"))
    num_salient, num_context = torch.ops.fastvid.plan(
        segment_ids, similarity, tokens_per_frame, **config.to_kwargs("plan")
    )
    return segment_ids, num_salient, num_context


class HostCopy:
    """A tensor on its way to the host. Only :meth:`tolist` waits, for what stands before the copy and no more."""

    def __init__(self, values: Tensor) -> None:
        self._values = values.to("cpu", non_blocking=True)
        self._arrived = torch.cuda.current_stream(values.device).record_event() if values.is_cuda else None

    def tolist(self) -> list[int]:
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._values.tolist()


class KeptCounts:
    """The number of tokens that a prune keeps of each video; :meth:`tolist` gives them, and waits if it has to.

    Args:
        frame_features: (T, C) of each video.
        tokens_per_frame: (N) of each video.
        config: the parameters.
    """

    def __init__(self, frame_features: Sequence[Tensor], tokens_per_frame: Sequence[int], config: PruneConfig) -> None:
        videos = list(zip(frame_features, tokens_per_frame, strict=True))
        self._most = [retained_count(len(features), count, config) for features, count in videos]
        self._counts = None
        if videos and not config.exact_count:
            self._counts = HostCopy(torch.stack([_kept(features, count, config) for features, count in videos]))

    def tolist(self) -> list[int]:
        return self._most if self._counts is None else self._counts.tolist()


def _kept(frame_features: Tensor, tokens_per_frame: int, config: PruneConfig) -> Tensor:
    """() int64 on the device."""
    if retained_count(1, tokens_per_frame, config) == tokens_per_frame:  # budgets do not count then
        return torch.full((), len(frame_features) * tokens_per_frame, device=frame_features.device)
    _, num_salient, num_context = budgets(frame_features, tokens_per_frame, config)
    return (num_salient + num_context).sum()
