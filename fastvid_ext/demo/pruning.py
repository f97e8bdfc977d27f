"""One call of ``torch.ops.fastvid.prune``, and what became of every token."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch.utils import benchmark

from ..budgets import budgets
from ..config import PruneConfig

PRUNED, SALIENT, CENTER = 0, 1, 2


class Pruning(NamedTuple):
    """How F frames of N tokens were pruned.

    Attributes:
        segments: frames of each segment.
        roles: (F, N) PRUNED, SALIENT (kept as it was) or CENTER (kept, other tokens merged into it).
        seconds: warm median of one prune.
    """

    segments: list[range]
    roles: np.ndarray
    seconds: float


@torch.inference_mode()
def prune(tokens: torch.Tensor, saliency: torch.Tensor, config: PruneConfig) -> Pruning:
    """Prune (F, N, D) tokens by their (F, N) saliency, and time it.

    ``prune`` returns the kept tokens alone; the stage ops, given the same, tell the segments, and which of them are
    salient: the first ``num_salient`` of their frame. The other kept ones are merge centres.
    """
    features = tokens.float().mean(1)
    arguments = config.to_kwargs()

    def call() -> tuple[torch.Tensor, ...]:
        return torch.ops.fastvid.prune(tokens, saliency, features, **arguments)

    _, indices, _ = call()
    segment_ids, num_salient, _ = budgets(features, tokens.shape[1], config)
    rank = saliency.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    kept = torch.zeros_like(saliency, dtype=torch.bool)
    kept.view(-1)[indices] = True
    roles = torch.where(rank < num_salient[:, None], SALIENT, CENTER) * kept
    timer = benchmark.Timer("call()", globals={"call": call}, num_threads=torch.get_num_threads())
    return Pruning(
        segments_of(segment_ids.tolist()), roles.byte().cpu().numpy(), timer.blocked_autorange(min_run_time=0.3).median
    )


def segments_of(segment_ids: list[int]) -> list[range]:
    """The frames of each segment, from the segment of each frame."""
    starts = [frame for frame, segment in enumerate(segment_ids) if frame == 0 or segment != segment_ids[frame - 1]]
    return [range(*bounds) for bounds in zip(starts, [*starts[1:], len(segment_ids)], strict=True)]
