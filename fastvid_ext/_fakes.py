"""Shapes and dtypes of the ops' results, for torch.compile and torch.export; no data is looked at."""

from __future__ import annotations

import torch
from torch import Tensor


def _accumulator(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def segment(
    frame_features: Tensor, cu_frames: Tensor | None = None, *, min_segments: int = 8, threshold: float = 0.9
) -> tuple[Tensor, Tensor]:
    frames, _ = frame_features.shape
    return (
        frame_features.new_empty((frames,), dtype=torch.int32),
        frame_features.new_empty((frames,), dtype=_accumulator(frame_features)),
    )


def plan(segment_ids: Tensor, similarity: Tensor, tokens_per_frame: int, **budget) -> tuple[Tensor, Tensor]:
    (frames,) = segment_ids.shape
    return (
        segment_ids.new_empty((frames,), dtype=torch.int32),
        segment_ids.new_empty((frames,), dtype=torch.int32),
    )


def knn_density(tokens: Tensor, mask: Tensor | None = None, *, num_neighbors: int = 4) -> Tensor:
    batch, count, _ = tokens.shape
    return tokens.new_empty((batch, count), dtype=_accumulator(tokens))


def select_peaks(tokens: Tensor, density: Tensor, num_peaks: int, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
    batch, count, _ = tokens.shape
    return (
        tokens.new_empty((batch, num_peaks), dtype=torch.int64),
        tokens.new_empty((batch, count), dtype=_accumulator(tokens)),
    )


def scatter_merge(
    tokens: Tensor,
    centers: Tensor,
    mask: Tensor | None = None,
    *,
    merge_floor: float = 0.6,
    merge_centers: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    batch, count, channels = tokens.shape
    _, num_centers = centers.shape
    return (
        tokens.new_empty((batch, num_centers, channels)),
        tokens.new_empty((batch, count), dtype=torch.int64),
        tokens.new_empty((batch, num_centers), dtype=torch.int64),
    )


def prune(
    tokens: Tensor,
    saliency: Tensor,
    frame_features: Tensor | None = None,
    cu_frames: Tensor | None = None,
    *,
    retention_ratio: float = 0.1,
    thin_threshold: float | None = None,
    spread_remainder: bool = True,
    **parameters,
) -> tuple[Tensor, Tensor, Tensor]:
    if spread_remainder and thin_threshold is None:
        kept = _most_rows(tokens, retention_ratio)
    else:
        kept = torch.library.get_ctx().new_dynamic_size()
    return _pruned(tokens, kept)


def prune_padded(
    tokens: Tensor,
    saliency: Tensor,
    frame_features: Tensor | None = None,
    cu_frames: Tensor | None = None,
    *,
    retention_ratio: float = 0.1,
    **parameters,
) -> tuple[Tensor, Tensor, Tensor]:
    return _pruned(tokens, _most_rows(tokens, retention_ratio))


def _most_rows(tokens: Tensor, retention_ratio: float) -> int | torch.SymInt:
    frames, count, _ = tokens.shape
    return frames * torch.sym_max(1, torch.sym_int(count * retention_ratio))


def _pruned(tokens: Tensor, rows: int | torch.SymInt) -> tuple[Tensor, Tensor, Tensor]:
    frames, _, channels = tokens.shape
    return (
        tokens.new_empty((rows, channels)),
        tokens.new_empty((rows,), dtype=torch.int64),
        tokens.new_empty((frames,), dtype=torch.int32),
    )
