"""FastVID as plain loops over float64 numbers, one rule after the other. Slow; shares no code with the package."""

from __future__ import annotations

import itertools
import math

import numpy as np

from fastvid_ext import PruneConfig


def norm(x):
    return max(float(np.sqrt((x * x).sum())), 1e-12)


def cosine(x, y):
    return float((x * y).sum()) / (norm(x) * norm(y))


def videos(cu_frames, frames):
    bounds = [0, frames] if cu_frames is None else [int(b) for b in cu_frames]
    return [(b, e) for b, e in itertools.pairwise(bounds) if e > b]


def similarities(features, cu_frames=None):
    """Cosine of each frame with the next, -1 at a video's last."""
    result = [-1.0] * len(features)
    for begin, end in videos(cu_frames, len(features)):
        for i in range(begin, end - 1):
            result[i] = cosine(features[i], features[i + 1])
    return result


def segments(similarity, cu_frames, min_segments, threshold):
    """(begin, end) of every segment."""
    found = []
    for begin, end in videos(cu_frames, len(similarity)):
        inner = range(begin, end - 1)
        least = sorted(inner, key=lambda i: (similarity[i], i))[: min(min_segments - 1, end - begin - 1)]
        cuts = [i for i in inner if similarity[i] < threshold or i in least] + [end - 1]
        for cut in cuts:
            found.append((begin, cut + 1))
            begin = cut + 1
    return found


def frame_budget(n, retention_ratio):
    return max(1, int(n * retention_ratio))


def spread(total, parts):
    return [total // parts + (1 if i < total % parts else 0) for i in range(parts)]


def effective_stride(length, centers, most_centers, anchor_stride):
    fitting = [
        q
        for q in range(1, min(anchor_stride, length) + 1)
        if math.ceil(centers / math.ceil(length / q)) <= most_centers
    ]
    return max(fitting, default=1)


def plan_segment(similarity, n, config: PruneConfig):
    """(salient, centres) of each frame of a segment, given the similarity of each to the next."""
    length, budget = len(similarity), frame_budget(n, config.retention_ratio)
    if budget == n:
        return [(n, 0)] * length
    salient, centers = [0] * length, [0] * length
    total = budget * length
    if config.thin_threshold is not None:
        context = max(int(total * config.context_ratio), 1)
        if length == 1:
            return [(total - context, context)]
        runs = [i for i in range(length) if i == length - 1 or similarity[i] < config.thin_threshold]
        anchors = runs[::-1][:: config.anchor_stride]
        for i, share in zip(anchors, spread(context, math.ceil(len(runs) / config.anchor_stride))):
            centers[i] = min(share, n // 2)
        for i, share in zip(runs, spread(total - context, len(runs))):
            salient[i] = min(share, n - centers[i])
    else:
        if config.spread_remainder:
            context = int(total * config.context_ratio)
            salient = spread(total - context, length)
        else:
            context = int(budget * config.context_ratio) * length
            salient = [budget - int(budget * config.context_ratio)] * length
        cap = n - math.ceil(sum(salient) / length)
        stride = effective_stride(length, context, cap, config.anchor_stride)
        count = math.ceil(length / stride)
        shares = spread(context, count) if config.spread_remainder else [context // count] * count
        for j in range(count):
            centers[length - 1 - j * stride] = shares[j]
    return list(zip(salient, centers))


def top(values, count, among=None):
    """Indices of the `count` largest, ascending; ties go to the lower index, NaN ranks last."""
    among = range(len(values)) if among is None else among
    ranked = sorted(among, key=lambda i: (math.isnan(values[i]), -values[i] if values[i] == values[i] else 0.0, i))
    return sorted(ranked[:count])


def distance(x, y):
    return math.sqrt(float(((x - y) ** 2).sum()) / len(x))


def densities(x, among, num_neighbors):
    rho = {}
    for i in among:
        squared = sorted(distance(x[i], x[j]) ** 2 for j in among)[: min(num_neighbors, len(among))]
        rho[i] = math.exp(-sum(squared) / len(squared))
    return rho


def scores(x, rho):
    """gamma of every token that rho knows."""
    farthest = max((distance(x[i], x[j]) for i in rho for j in rho), default=0.0)
    gamma = {}
    for i in rho:
        denser = [j for j in rho if rho[j] > rho[i] or (rho[j] == rho[i] and j < i)]
        gamma[i] = rho[i] * min((distance(x[i], x[j]) for j in denser), default=farthest)
    return gamma


def merge(x, centers, members, merge_floor):
    """Merged row of every centre, and the centre (its place in `centers`) of every member."""
    chosen = {t: max(range(len(centers)), key=lambda c: (cosine(x[t], x[centers[c]]), -c)) for t in members}
    rows = []
    for c, center in enumerate(centers):
        own = [x[t] for t in members if chosen[t] == c]
        weight = max(1 / (len(own) + 1), merge_floor)
        rows.append(weight * x[center] + (1 - weight) * np.mean(own, axis=0) if own else x[center].copy())
    return rows, chosen


def prune(tokens, saliency, frame_features=None, cu_frames=None, config: PruneConfig | None = None):
    """(rows, indices, frame_counts) of float64 arrays (T, N, D), (T, N), (T, C)."""
    config = config or PruneConfig()
    frames, n, _ = tokens.shape
    features = tokens.mean(1) if frame_features is None else frame_features
    similarity = similarities(features, cu_frames)
    kept = {}
    for begin, end in segments(similarity, cu_frames, config.min_segments, config.segment_threshold):
        plan = plan_segment(similarity[begin:end], n, config)
        salient = [set(top(saliency[begin + i], count)) for i, (count, _) in enumerate(plan)]
        x = tokens[begin:end].reshape(-1, tokens.shape[2])
        rest = [i * n + t for i in range(end - begin) for t in range(n) if t not in salient[i]]
        for i, (_, num_centers) in enumerate(plan):
            kept.update({(begin + i) * n + t: x[i * n + t] for t in salient[i]})
            if num_centers:
                among = [t for t in range(n) if t not in salient[i]]
                frame = tokens[begin + i]
                gamma = scores(frame, densities(frame, among, config.num_neighbors))
                centers = [i * n + t for t in top(gamma, num_centers, among)]
                members = rest if config.merge_centers else [t for t in rest if t not in centers]
                rows, _ = merge(x, centers, members, config.merge_floor)
                kept.update({begin * n + c: row for c, row in zip(centers, rows)})
    indices = sorted(kept)
    rows = np.stack([kept[i] for i in indices]) if indices else np.empty((0, tokens.shape[2]))
    return rows, indices, [sum(i // n == f for i in indices) for f in range(frames)]
