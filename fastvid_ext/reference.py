"""FastVID in plain PyTorch: what the CUDA kernels are checked against, and what runs on a CPU.

FastVID (Shen et al., NeurIPS 2025, arXiv 2503.11187) cuts a video into segments, keeps the most salient tokens of
each frame, and merges the rest into the density peaks of a few anchor frames; docs/algorithm.md defines every step. The
functions here carry the names and the signatures of the ops in ``torch.ops.fastvid``. They trust their arguments; the
ops check them first.

Sums accumulate in float32, or in float64 for float64 input, which makes the same code the oracle of the tests.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

__all__ = ["knn_density", "plan", "prune", "prune_padded", "scatter_merge", "segment", "select_peaks"]

NORM_FLOOR = 1e-12


def segment(
    frame_features: Tensor, cu_frames: Tensor | None = None, *, min_segments: int = 8, threshold: float = 0.9
) -> tuple[Tensor, Tensor]:
    """Cut videos where adjacent frames differ (DySeg).

    Args:
        frame_features: (T, C) one vector a frame, any floating dtype.
        cu_frames: (B+1,) int32 or int64, video b owns frames cu_frames[b] to cu_frames[b+1]; None: one video.
        min_segments: (c) the c-1 least similar neighbours of a video are cut whatever their similarity.
        threshold: (tau) neighbours with a cosine similarity below it are cut.

    Returns:
        segment_ids (T,) int32, counted over all videos, and similarity (T,) float32 (float64 for float64 features)
        of each frame to the next, -1 at a video's last frame.
    """
    features = _accumulated(frame_features)
    unit = _unit(features)
    similarity = features.new_full((features.shape[0],), -1.0)
    similarity[:-1] = (unit[:-1] * unit[1:]).sum(-1)
    cut = similarity < threshold
    for begin, end in _videos(cu_frames, features.shape[0]):
        similarity[end - 1] = -1.0
        cut[end - 1] = True
        least_similar = similarity[begin : end - 1].argsort(stable=True)[: min_segments - 1]
        cut[begin + least_similar] = True
    segment_ids = cut.cumsum(0) - cut.long()
    return segment_ids.int(), similarity


def plan(
    segment_ids: Tensor,
    similarity: Tensor,
    tokens_per_frame: int,
    *,
    retention_ratio: float = 0.1,
    context_ratio: float = 0.4,
    anchor_stride: int = 4,
    thin_threshold: float | None = None,
    spread_remainder: bool = True,
) -> tuple[Tensor, Tensor]:
    """Share each segment's budget among its frames.

    Args:
        segment_ids: (T,) int32 as from :func:`segment`.
        similarity: (T,) as from :func:`segment`; read only with thin_threshold.
        tokens_per_frame: (N).
        retention_ratio: (r) share of the tokens that is kept; a frame's budget is R = max(1, int(N * r)).
        context_ratio: (d) share of a segment's budget that goes to centres.
        anchor_stride: (p) every p-th frame of a segment, counted from its end, is an anchor frame.
        thin_threshold: runs of frames at least this similar hold one budget, at their last frame (Qwen).
        spread_remainder: spread what does not divide evenly; False drops it (LLaVA-OneVision).

    Returns:
        num_salient and num_context, both (T,) int32: tokens that each frame keeps, and centres that it merges into.
    """
    n = tokens_per_frame
    budget = max(1, int(n * retention_ratio))
    ids = segment_ids.tolist()
    num_salient, num_context = [n] * len(ids), [0] * len(ids)
    starts = [f for f in range(len(ids)) if f == 0 or ids[f] != ids[f - 1]]
    for begin, end in zip(starts, starts[1:] + [len(ids)]):
        if budget == n:  # nothing to prune: every token is kept as it is
            continue
        length = end - begin
        salient, context = [0] * length, [0] * length
        if thin_threshold is not None:
            to_context = max(int(budget * length * context_ratio), 1)
            to_salient = budget * length - to_context
            holders = [i for i in range(length - 1) if similarity[begin + i] < thin_threshold] + [length - 1]
            anchors = holders[::-anchor_stride]
            most_centers = n if length == 1 else n // 2
            for anchor, share in zip(anchors, _spread(to_context, len(anchors))):
                context[anchor] = min(share, most_centers)
            for holder, share in zip(holders, _spread(to_salient, len(holders))):
                salient[holder] = min(share, n - context[holder])
        else:
            if spread_remainder:
                to_context = int(budget * length * context_ratio)
                salient = _spread(budget * length - to_context, length)
            else:
                to_context = int(budget * context_ratio) * length
                salient = [budget - int(budget * context_ratio)] * length
            stride = _effective_stride(length, to_context, n - max(salient), anchor_stride)
            anchors = range(length - 1, -1, -stride)
            shares = _spread(to_context, len(anchors))
            for anchor, share in zip(anchors, shares):
                context[anchor] = share if spread_remainder else to_context // len(anchors)
        num_salient[begin:end], num_context[begin:end] = salient, context
    return segment_ids.new_tensor(num_salient), segment_ids.new_tensor(num_context)


def knn_density(tokens: Tensor, mask: Tensor | None = None, *, num_neighbors: int = 4) -> Tensor:
    """Local density of each token among the tokens of its frame.

    rho_i = exp(-mean of the squared min(k, n) smallest distances of i, its own 0 included), where a distance is
    ||x_i - x_j|| / sqrt(D) and n counts the tokens that take part.

    Args:
        tokens: (B, N, D) floating.
        mask: (B, N) bool, True for the tokens that take part; None: all.
        num_neighbors: (k).

    Returns:
        density (B, N) float32 (float64 for float64 tokens), 0 where a token takes no part.
    """
    return _density(_squared_distances(tokens), _everything(tokens, mask), num_neighbors)


def select_peaks(tokens: Tensor, density: Tensor, num_peaks: int, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Choose the density peaks of each frame as centres (DPC-kNN).

    The score is gamma_i = rho_i * delta_i, delta_i the distance to the nearest denser token; for a token with none,
    the largest distance in the frame. Of equally dense tokens the one with the lower index is the denser.

    Args:
        tokens: (B, N, D) floating.
        density: (B, N) as from :func:`knn_density`.
        num_peaks: centres a frame, 0 to N.
        mask: (B, N) bool, True for the tokens that take part; None: all.

    Returns:
        centers (B, num_peaks) int64, ascending, -1 at the end where fewer tokens take part; and score (B, N)
        float32 (float64 for float64 tokens), 0 where a token takes no part.
    """
    mask = _everything(tokens, mask)
    score, order = _peak_order(_squared_distances(tokens), density, mask)
    n = tokens.shape[1]
    present = torch.arange(num_peaks, device=tokens.device) < mask.sum(1, keepdim=True)
    centers = order[:, :num_peaks].masked_fill(~present, n).sort(1).values
    return centers.masked_fill(centers == n, -1), score


def scatter_merge(
    tokens: Tensor,
    centers: Tensor,
    mask: Tensor | None = None,
    *,
    merge_floor: float = 0.6,
    merge_centers: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Merge every token into the centre that it resembles most (DTM).

    With n_j tokens of mean m_j at centre x_j, w_j = max(1 / (n_j + 1), beta) and the result is
    w_j * x_j + (1 - w_j) * m_j, computed in float32 and rounded once.

    Args:
        tokens: (B, N, D) floating.
        centers: (B, C) int64, token indices; -1: no centre, its row of the result is 0.
        mask: (B, N) bool, True for the tokens that are merged; None: all.
        merge_floor: (beta) least weight that a centre keeps.
        merge_centers: whether the centres are among the tokens that are merged.

    Returns:
        merged (B, C, D) in the dtype of tokens; assignment (B, N) int64, each token's place in centers, -1 for a
        token that is not merged; counts (B, C) int64, tokens merged into each centre.
    """
    mask = _everything(tokens, mask)
    x = _accumulated(tokens)
    results = [_merge(*args, merge_floor, merge_centers) for args in zip(x, _unit(x), centers, mask)]
    if not results:
        _, n, d = tokens.shape
        return tokens.new_empty(0, centers.shape[1], d), centers.new_empty(0, n), centers.new_empty(centers.shape)
    merged, assignment, counts = map(torch.stack, zip(*results))
    return merged.to(tokens.dtype), assignment, counts


def prune(
    tokens: Tensor,
    saliency: Tensor,
    frame_features: Tensor | None = None,
    cu_frames: Tensor | None = None,
    *,
    retention_ratio: float = 0.1,
    min_segments: int = 8,
    segment_threshold: float = 0.9,
    context_ratio: float = 0.4,
    anchor_stride: int = 4,
    merge_floor: float = 0.6,
    num_neighbors: int = 4,
    thin_threshold: float | None = None,
    spread_remainder: bool = True,
    merge_centers: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Prune the tokens of one video, or of several packed along the frames.

    Args:
        tokens: (T, N, D) floating.
        saliency: (T, N) floating; larger is more salient, NaN ranks last.
        frame_features: (T, C) floating; None: the mean of each frame's tokens.
        cu_frames: (B+1,) int32 or int64, video b owns frames cu_frames[b] to cu_frames[b+1]; None: one video.
        retention_ratio, min_segments, ...: see :class:`fastvid_ext.PruneConfig`.

    Returns:
        tokens (K, D) in the dtype of tokens, indices (K,) int64 ascending into the T*N tokens, and frame_counts (T,)
        int32, rows kept of each frame.
    """
    n = tokens.shape[1]
    if frame_features is None:
        frame_features = tokens.mean(1, dtype=_accumulated(tokens[:0]).dtype)
    segment_ids, similarity = segment(frame_features, cu_frames, min_segments=min_segments, threshold=segment_threshold)
    num_salient, num_context = plan(
        segment_ids,
        similarity,
        n,
        retention_ratio=retention_ratio,
        context_ratio=context_ratio,
        anchor_stride=anchor_stride,
        thin_threshold=thin_threshold,
        spread_remainder=spread_remainder,
    )
    salient = _descending_rank(saliency) < num_salient[:, None]
    kept = salient.clone()
    center_rows, merged_rows = [], []
    for begin, end in _segment_bounds(segment_ids):
        x = _accumulated(tokens[begin:end])
        anchors = num_context[begin:end].nonzero().flatten()
        if len(anchors) == 0:
            continue
        candidates = ~salient[begin + anchors]
        squared = _squared_distances(x[anchors])
        _, order = _peak_order(squared, _density(squared, candidates, num_neighbors), candidates)
        x, unit, mergeable = x.flatten(0, 1), _unit(x.flatten(0, 1)), ~salient[begin:end].flatten()
        for anchor, peaks in zip(anchors.tolist(), order):
            centers = anchor * n + peaks[: num_context[begin + anchor]].sort().values
            merged, _, _ = _merge(x, unit, centers, mergeable, merge_floor, merge_centers)
            center_rows.append(begin * n + centers)
            merged_rows.append(merged.to(tokens.dtype))
            kept.view(-1)[center_rows[-1]] = True
    indices = kept.flatten().nonzero().flatten()
    rows = tokens.flatten(0, 1)[indices]
    if center_rows:
        rows[torch.searchsorted(indices, torch.cat(center_rows))] = torch.cat(merged_rows)
    return rows, indices, kept.sum(1, dtype=torch.int32)


def prune_padded(
    tokens: Tensor,
    saliency: Tensor,
    frame_features: Tensor | None = None,
    cu_frames: Tensor | None = None,
    *,
    retention_ratio: float = 0.1,
    **parameters,
) -> tuple[Tensor, Tensor, Tensor]:
    """As :func:`prune`, always with T * R rows: those past the kept ones are 0 with index -1."""
    rows, indices, frame_counts = prune(
        tokens, saliency, frame_features, cu_frames, retention_ratio=retention_ratio, **parameters
    )
    frames, n, d = tokens.shape
    padding = frames * max(1, int(n * retention_ratio)) - len(indices)
    return (
        torch.cat([rows, rows.new_zeros(padding, d)]),
        torch.cat([indices, indices.new_full((padding,), -1)]),
        frame_counts,
    )


def _accumulated(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _unit(x: Tensor) -> Tensor:
    return x / x.norm(dim=-1, keepdim=True).clamp_min(NORM_FLOOR)


def _everything(tokens: Tensor, mask: Tensor | None) -> Tensor:
    return tokens.new_ones(tokens.shape[:2], dtype=torch.bool) if mask is None else mask


def _videos(cu_frames: Tensor | None, frames: int) -> list[tuple[int, int]]:
    """Where every video that has frames begins and ends."""
    cuts = [0, frames] if cu_frames is None else cu_frames.tolist()
    return [(begin, end) for begin, end in pairwise(cuts) if end > begin]


def _segment_bounds(segment_ids: Tensor) -> list[tuple[int, int]]:
    ends = torch.unique_consecutive(segment_ids, return_counts=True)[1].cumsum(0).tolist()
    return list(zip([0] + ends, ends))


def _spread(total: int, parts: int) -> list[int]:
    return [total // parts + (i < total % parts) for i in range(parts)]


def _effective_stride(length: int, centers: int, most_centers: int, anchor_stride: int) -> int:
    """The largest stride up to anchor_stride with which no anchor frame needs more than most_centers centres."""
    for stride in range(min(anchor_stride, length), 1, -1):
        anchors = -(-length // stride)
        if -(-centers // anchors) <= most_centers:
            return stride
    return 1


def _descending_rank(values: Tensor) -> Tensor:
    """Place of each value in its row, largest first, ties by index, NaN last."""
    order = (-values).argsort(dim=1, stable=True)
    places = torch.arange(values.shape[1], device=values.device).expand_as(order)
    return torch.empty_like(order).scatter_(1, order, places)


def _squared_distances(tokens: Tensor) -> Tensor:
    """(B, N, N) squared distances over D, as ||x||^2 + ||y||^2 - 2 <x, y>."""
    x = _accumulated(tokens)
    gram = x @ x.mT
    norms = gram.diagonal(dim1=1, dim2=2)
    squared = (norms[:, :, None] + norms[:, None, :] - 2 * gram).clamp_min(0) / tokens.shape[2]
    squared.diagonal(dim1=1, dim2=2).zero_()
    return squared


def _density(squared: Tensor, mask: Tensor, num_neighbors: int) -> Tensor:
    k = min(num_neighbors, squared.shape[1])
    nearest = squared.masked_fill(~mask[:, None], torch.inf).topk(k, largest=False).values
    neighbors = mask.sum(1).clamp(1, k)[:, None]
    taken = torch.arange(k, device=mask.device) < neighbors[:, None]
    mean = nearest.masked_fill(~taken, 0).sum(-1) / neighbors
    return (-mean).exp().masked_fill(~mask, 0)


def _peak_order(squared: Tensor, density: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Score of each token, and the tokens by descending score, those that take no part last."""
    distance = squared.sqrt()
    index = torch.arange(mask.shape[1], device=mask.device)
    mine, other = density[:, :, None], density[:, None, :]
    denser = (other > mine) | ((other == mine) & (index[None, :] < index[:, None]))
    to_denser = distance.masked_fill(~(denser & mask[:, None]), torch.inf).amin(2)
    pair = mask[:, :, None] & mask[:, None]
    farthest = distance.masked_fill(~pair, 0).amax((1, 2))[:, None]
    score = (density * torch.minimum(to_denser, farthest)).masked_fill(~mask, 0)
    ranked = score.nan_to_num(nan=-torch.inf, posinf=torch.inf).masked_fill(~mask, torch.nan)
    return score, (-ranked).argsort(dim=1, stable=True)


def _merge(
    x: Tensor, unit: Tensor, centers: Tensor, mask: Tensor, merge_floor: float, merge_centers: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Merge the masked rows of x (M, D), unit their directions, into the centres (C,); see scatter_merge."""
    assignment = _assign(unit, centers, mask, merge_centers)
    merged, counts = _average(x, centers, assignment, merge_floor)
    return merged, assignment, counts


def _assign(unit: Tensor, centers: Tensor, mask: Tensor, merge_centers: bool) -> Tensor:
    """The place in centers that each masked row goes to, by its direction; -1 for the others."""
    present = centers >= 0
    mergeable = mask.clone()
    if not merge_centers:
        mergeable[centers[present]] = False
    if not present.any():
        mergeable.zero_()
    cosine = (unit @ unit[centers.clamp_min(0)].T).nan_to_num(nan=-torch.inf)
    assignment = torch.full_like(mask, -1, dtype=torch.long)
    if len(centers):
        assignment[mergeable] = cosine.masked_fill(~present, -torch.inf).argmax(1)[mergeable]
    return assignment


def _average(x: Tensor, centers: Tensor, assignment: Tensor, merge_floor: float) -> tuple[Tensor, Tensor]:
    """The centres with the rows of x that were assigned to each averaged in, and the number of those."""
    mergeable = assignment >= 0
    counts = assignment[mergeable].bincount(minlength=len(centers))
    sums = x.new_zeros(len(centers), x.shape[1]).index_add_(0, assignment[mergeable], x[mergeable])
    mean = sums / counts.clamp_min(1)[:, None]
    weight = (1 / (counts + 1).to(x.dtype)).clamp_min(merge_floor)[:, None]
    center_rows = x[centers.clamp_min(0)]
    merged = weight * center_rows + (1 - weight) * mean
    return torch.where((counts > 0)[:, None], merged, center_rows) * (centers >= 0)[:, None], counts
