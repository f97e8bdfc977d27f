"""Arguments of the ops: right ones, and for each of them wrong values of every kind."""

from __future__ import annotations

import math

import torch
from torch import Tensor

T, N, D = 4, 6, 8
RATIOS = ("context_ratio", "merge_floor")
NUMBERS = ("segment_threshold", "threshold", "thin_threshold")
COUNTS = ("min_segments", "anchor_stride", "num_neighbors", "tokens_per_frame")
FLAGS = ("spread_remainder", "merge_centers")
PLAN = ("retention_ratio", "context_ratio", "anchor_stride", "thin_threshold", "spread_remainder")
PRUNE = ("min_segments", "segment_threshold", "merge_floor", "num_neighbors", "merge_centers", *PLAN)
PARAMETERS = {
    "prune": PRUNE,
    "prune_padded": PRUNE,
    "segment": ("min_segments", "threshold"),
    "plan": PLAN,
    "knn_density": ("num_neighbors",),
    "select_peaks": (),
    "scatter_merge": ("merge_floor", "merge_centers"),
}
OPTIONAL = ("frame_features", "cu_frames", "mask")


def arguments(op: str, device: str) -> dict:
    """Arguments that `op` takes."""
    tokens = torch.zeros(T, N, D, device=device)
    flat = torch.zeros(T, device=device)
    return {
        "prune": {"tokens": tokens, "saliency": tokens[..., 0]},
        "prune_padded": {"tokens": tokens, "saliency": tokens[..., 0]},
        "segment": {"frame_features": tokens[:, 0]},
        "plan": {"segment_ids": flat.int(), "similarity": flat, "tokens_per_frame": N},
        "knn_density": {"tokens": tokens},
        "select_peaks": {"tokens": tokens, "density": tokens[..., 0], "num_peaks": 2},
        "scatter_merge": {"tokens": tokens, "centers": torch.zeros(T, 2, dtype=torch.int64, device=device)},
    }[op]


def all_arguments(op: str, device: str) -> dict:
    """The same, with every optional tensor given too."""
    given = arguments(op, device)
    if op in ("prune", "prune_padded"):
        given["frame_features"] = torch.zeros(T, 3, device=device)
    if op in ("prune", "prune_padded", "segment"):
        given["cu_frames"] = torch.tensor([0, 1, T], dtype=torch.int32)
    if op in ("knn_density", "select_peaks", "scatter_merge"):
        given["mask"] = torch.ones(T, N, dtype=torch.bool, device=device)
    return given


def tensors(result) -> list[Tensor]:
    return [result] if isinstance(result, Tensor) else list(result)


def wrong_values(op: str, name: str, device: str) -> list:
    """Values of argument `name` that no call of `op` may take."""
    given = all_arguments(op, device)
    right = given.get(name)
    if name == "cu_frames":
        return _wrong_boundaries(device)
    if isinstance(right, Tensor):
        values = ["text", 3, [0.5], 1j, object(), right.new_zeros(()), right[None], right[..., 0], right.to_sparse()]
        values += [right.to(dtype) for dtype in (torch.int16, torch.uint8, torch.complex64, torch.float8_e4m3fn)]
        alone = (op, name) == ("segment", "frame_features")  # on any device it is right
        values += [right.cpu()] if device != "cpu" and not alone else []
        if name == "tokens":
            return [None, right[:, :0], right[..., :0], right.bool(), *values]
        if name not in OPTIONAL:
            values.append(None)
        if name == "frame_features":
            values.append(right[:, :0])
        if (op, name) not in (("segment", "frame_features"), ("plan", "segment_ids")):
            values += [right[:-1], torch.cat([right, right[:1]])]  # as many frames as there are
        if name in ("mask", "density", "saliency"):
            values += [right[:, :-1], right.T]
        if name == "centers":
            values += [right.int(), right.repeat(1, N)]
            values += [right + bad for bad in (N, 2**40, -2, -(2**63))] if device == "cpu" else []
        if name in ("density", "similarity"):
            values += [right.half(), right.bfloat16()]
        return values
    if name in FLAGS:  # torch takes None and numbers for what they are worth
        return ["text", [True], object()]
    values = ["text", [1], 1j, torch.zeros(2), object()]
    if name != "thin_threshold":
        values.append(None)
    if name == "num_peaks":
        return [*values, -1, N + 1, 2**62, -(2**63), 2**63, math.nan, 1.5]
    if name in COUNTS:
        most = [2**31, 2**62] if name == "tokens_per_frame" else []
        return [*values, 0, -1, -(2**63), 2**63, math.nan, 1.5, *most]
    values.append(math.nan)
    if name in RATIOS:
        values += [-1e-9, 1.0000001, math.inf, -math.inf, 10**400]
    if name == "retention_ratio":
        values += [0, -0.1, 1.0000001, math.inf, -math.inf]
    return values


def _wrong_boundaries(device: str) -> list:
    def on_host(*bounds, dtype=torch.int32):
        return torch.tensor(bounds, dtype=dtype)

    values = ["text", 3, [0, T], 1j, object()]
    values += [on_host(), on_host(0), on_host(0, T)[None], on_host(0, T)[0]]
    values += [on_host(0, T).to(dtype) for dtype in (torch.float32, torch.int16, torch.uint8, torch.complex64)]
    values += [on_host(0, T) > 0, on_host(0, 9, T, 9)[::2], on_host(0, T).to_sparse()]
    for dtype in (torch.int32, torch.int64):
        for bounds in ((1, T), (-1, T), (0, 3, 2, T), (0, T + 1, T), (0, 2), (0, T + 1), (0, -1, T), (0, 0), (T, 0)):
            values.append(on_host(*bounds, dtype=dtype))
    values += [on_host(0, 2**40, T, dtype=torch.int64), on_host(-(2**63), T, dtype=torch.int64)]
    if device != "cpu":  # where it is never read back, so that only its kind can be refused
        values += [on_host(0, 9, T, 9).to(device)[::2], on_host(0).to(device), on_host(0, T).float().to(device)]
    return values
