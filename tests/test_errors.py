"""What the ops refuse: an error that names the argument, what it got and what it wants."""

from __future__ import annotations

import re

import pytest
import torch
from helpers.calls import arguments

ops = torch.ops.fastvid
NAN = float("nan")


def says(message: str) -> str:
    """The message stands alone, without the place in the source that torch's own checks put before it."""
    return "^" + re.escape(message)


def zeros(*shape, dtype=torch.float32):
    return torch.zeros(shape, dtype=dtype)


def cuts(*bounds, dtype=torch.int32):
    return torch.tensor(bounds, dtype=dtype)


PRUNE = [
    ({"tokens": zeros(6, 8)}, "tokens: got shape (6, 8), want (T, N, D) = (any, any, any)"),
    ({"tokens": zeros(2, 4, 6, 8)}, "tokens: got shape (2, 4, 6, 8), want (T, N, D) = (any, any, any)"),
    ({"tokens": zeros(4, 0, 8)}, "tokens: got shape (4, 0, 8), want N of at least 1"),
    ({"tokens": zeros(4, 6, 0)}, "tokens: got shape (4, 6, 0), want D of at least 1"),
    (
        {"tokens": zeros(4, 6, 8, dtype=torch.int32)},
        "tokens: got dtype Int, want bfloat16, float16, float32 or float64",
    ),
    ({"tokens": zeros(4, 6, 8, dtype=torch.complex64)}, "tokens: got dtype ComplexFloat, want bfloat16, float16"),
    ({"saliency": zeros(4, 7)}, "saliency: got shape (4, 7), want (T, N) = (4, 6)"),
    ({"saliency": zeros(6)}, "saliency: got shape (6,), want (T, N) = (4, 6)"),
    (
        {"saliency": zeros(4, 6, dtype=torch.int64)},
        "saliency: got dtype Long, want bfloat16, float16, float32 or float64",
    ),
    ({"frame_features": zeros(3, 5)}, "frame_features: got shape (3, 5), want (T, C) = (4, any)"),
    ({"frame_features": zeros(4, 5, 1)}, "frame_features: got shape (4, 5, 1), want (T, C) = (4, any)"),
    ({"frame_features": zeros(4, 0)}, "frame_features: got shape (4, 0), want C of at least 1"),
    ({"frame_features": zeros(4, 5, dtype=torch.bool)}, "frame_features: got dtype Bool, want bfloat16"),
    ({"retention_ratio": 0.0}, "retention_ratio: got 0, want a value in (0, 1]"),
    ({"retention_ratio": -0.5}, "retention_ratio: got -0.5, want a value in (0, 1]"),
    ({"retention_ratio": 1.5}, "retention_ratio: got 1.5, want a value in (0, 1]"),
    ({"retention_ratio": NAN}, "retention_ratio: got nan, want a value in (0, 1]"),
    ({"min_segments": 0}, "min_segments: got 0, want at least 1"),
    ({"segment_threshold": NAN}, "segment_threshold: got nan, want a number"),
    ({"context_ratio": -0.1}, "context_ratio: got -0.1, want a value in [0, 1]"),
    ({"context_ratio": 1.1}, "context_ratio: got 1.1, want a value in [0, 1]"),
    ({"context_ratio": NAN}, "context_ratio: got nan, want a value in [0, 1]"),
    ({"anchor_stride": 0}, "anchor_stride: got 0, want at least 1"),
    ({"anchor_stride": -3}, "anchor_stride: got -3, want at least 1"),
    ({"merge_floor": 2.0}, "merge_floor: got 2, want a value in [0, 1]"),
    ({"merge_floor": NAN}, "merge_floor: got nan, want a value in [0, 1]"),
    ({"num_neighbors": 0}, "num_neighbors: got 0, want at least 1"),
    ({"thin_threshold": NAN}, "thin_threshold: got nan, want a number"),
]
BOUNDARIES = [
    (cuts(0), "cu_frames: got shape (1,), want (B+1,) with B of at least 1"),
    (zeros(0, dtype=torch.int32), "cu_frames: got shape (0,), want (B+1,) with B of at least 1"),
    (cuts(0, 4)[None], "cu_frames: got shape (1, 2), want (B+1,) = (any,)"),
    (cuts(0, 4).float(), "cu_frames: got dtype Float, want int32 or int64"),
    (cuts(0, 4).short(), "cu_frames: got dtype Short, want int32 or int64"),
    (cuts(1, 4), "cu_frames: starts at 1, want 0"),
    (cuts(-1, 4), "cu_frames: starts at -1, want 0"),
    (cuts(0, 3, 2, 4), "cu_frames: descends from 3 to 2 at position 2, want ascending"),
    (cuts(0, 5, 4, dtype=torch.int64), "cu_frames: descends from 5 to 4 at position 2, want ascending"),
    (cuts(0, 2), "cu_frames: ends at 2, want T = 4"),
    (cuts(0, 2, 5, dtype=torch.int64), "cu_frames: ends at 5, want T = 4"),
    (cuts(0, 9, 4, 9)[::2], "cu_frames: got a strided tensor, want a contiguous one"),
]
CASES = [("prune", *case) for case in PRUNE]
CASES += [("prune_padded", *PRUNE[0]), ("prune_padded", *PRUNE[6]), ("prune_padded", *PRUNE[-1])]
CASES += [(op, {"cu_frames": bad}, message) for bad, message in BOUNDARIES for op in ("prune", "segment")]
CASES += [
    ("segment", {"frame_features": zeros(4)}, "frame_features: got shape (4,), want (T, C) = (any, any)"),
    ("segment", {"frame_features": zeros(4, 0)}, "frame_features: got shape (4, 0), want C of at least 1"),
    ("segment", {"frame_features": zeros(4, 3, dtype=torch.uint8)}, "frame_features: got dtype Byte, want bfloat16"),
    ("segment", {"min_segments": -2}, "min_segments: got -2, want at least 1"),
    ("segment", {"threshold": NAN}, "threshold: got nan, want a number"),
    ("plan", {"segment_ids": zeros(4, 1, dtype=torch.int32)}, "segment_ids: got shape (4, 1), want (T,) = (any,)"),
    ("plan", {"segment_ids": zeros(4, dtype=torch.int64)}, "segment_ids: got dtype Long, want int32"),
    ("plan", {"similarity": zeros(5)}, "similarity: got shape (5,), want (T,) = (4,)"),
    ("plan", {"similarity": zeros(4, dtype=torch.float16)}, "similarity: got dtype Half, want float32"),
    ("plan", {"tokens_per_frame": 0}, "tokens_per_frame: got 0, want at least 1"),
    ("plan", {"retention_ratio": 0.0}, "retention_ratio: got 0, want a value in (0, 1]"),
    ("plan", {"context_ratio": 1.5}, "context_ratio: got 1.5, want a value in [0, 1]"),
    ("plan", {"anchor_stride": 0}, "anchor_stride: got 0, want at least 1"),
    ("plan", {"thin_threshold": NAN}, "thin_threshold: got nan, want a number"),
    ("knn_density", {"tokens": zeros(6, 8)}, "tokens: got shape (6, 8), want (B, N, D) = (any, any, any)"),
    ("knn_density", {"tokens": zeros(4, 0, 8)}, "tokens: got shape (4, 0, 8), want N of at least 1"),
    ("knn_density", {"mask": zeros(4, 5, dtype=torch.bool)}, "mask: got shape (4, 5), want (B, N) = (4, 6)"),
    ("knn_density", {"mask": zeros(4, 6)}, "mask: got dtype Float, want bool"),
    ("knn_density", {"num_neighbors": 0}, "num_neighbors: got 0, want at least 1"),
    ("select_peaks", {"density": zeros(4, 5)}, "density: got shape (4, 5), want (B, N) = (4, 6)"),
    ("select_peaks", {"density": zeros(4, 6, dtype=torch.float16)}, "density: got dtype Half, want float32"),
    ("select_peaks", {"num_peaks": -1}, "num_peaks: got -1, want 0 to N = 6"),
    ("select_peaks", {"num_peaks": 7}, "num_peaks: got 7, want 0 to N = 6"),
    ("select_peaks", {"mask": zeros(6, dtype=torch.bool)}, "mask: got shape (6,), want (B, N) = (4, 6)"),
    ("scatter_merge", {"centers": zeros(3, 2, dtype=torch.int64)}, "centers: got shape (3, 2), want (B, C) = (4, any)"),
    ("scatter_merge", {"centers": zeros(4, 2, dtype=torch.int32)}, "centers: got dtype Int, want int64"),
    ("scatter_merge", {"centers": zeros(4, 7, dtype=torch.int64)}, "centers: got 7 centres, want at most N = 6"),
    ("scatter_merge", {"mask": zeros(4, 6, dtype=torch.uint8)}, "mask: got dtype Byte, want bool"),
    ("scatter_merge", {"merge_floor": -0.5}, "merge_floor: got -0.5, want a value in [0, 1]"),
]


@pytest.mark.parametrize(("op", "changed", "message"), CASES, ids=[f"{op}-{text}" for op, _, text in CASES])
def test_refused(device, op, changed, message):
    wrong = {
        name: value.to(device) if isinstance(value, torch.Tensor) and name != "cu_frames" else value
        for name, value in changed.items()
    }
    with pytest.raises(RuntimeError, match=says(message)):
        getattr(ops, op)(**{**arguments(op, device), **wrong})
    getattr(ops, op)(**arguments(op, device))  # the next right call works


@pytest.mark.cuda
@pytest.mark.parametrize(
    ("op", "name", "like"),
    [
        ("prune", "saliency", "tokens"),
        ("prune", "frame_features", "tokens"),
        ("plan", "similarity", "segment_ids"),
        ("knn_density", "mask", "tokens"),
        ("select_peaks", "density", "tokens"),
        ("select_peaks", "mask", "tokens"),
        ("scatter_merge", "centers", "tokens"),
        ("scatter_merge", "mask", "tokens"),
    ],
)
@pytest.mark.parametrize(("here", "there"), [("cpu", "cuda:0"), ("cuda:0", "cpu")])
def test_mixed_devices(op, name, like, here, there):
    whole = arguments(op, here)
    whole.setdefault(name, torch.zeros(4, 6, dtype=torch.float32 if name == "frame_features" else torch.bool))
    whole[name] = whole[name].to(there)
    with pytest.raises(RuntimeError, match=says(f"{name}: got {there}, want the device of {like}, {here}")):
        getattr(ops, op)(**whole)


@pytest.mark.cuda
@pytest.mark.parametrize(
    ("op", "changed", "message"),
    [
        ("prune", {"tokens": zeros(4, 6, 8, dtype=torch.float64)}, "tokens: got dtype Double on CUDA, want bfloat16"),
        (
            "knn_density",
            {"tokens": zeros(1, 4097, 1)},
            "tokens: got N = 4097 tokens a frame on CUDA, want at most 4096",
        ),
        ("segment", {"frame_features": zeros(4, 6, dtype=torch.float64)}, "frame_features: got dtype Double on CUDA"),
        ("prune", {"cu_frames": cuts(0, 4).float()}, "cu_frames: got dtype Float, want int32 or int64"),
    ],
)
def test_refused_on_cuda_alone(op, changed, message):
    wrong = {name: value.to("cuda") for name, value in changed.items()}
    with pytest.raises(RuntimeError, match=says(message)):
        getattr(ops, op)(**{**arguments(op, "cuda"), **wrong})


@pytest.mark.cuda
def test_strided_cu_frames_on_cuda():
    strided = cuts(0, 9, 4, 9).to("cuda")[::2]
    with pytest.raises(RuntimeError, match=says("cu_frames: got a strided tensor, want a contiguous one")):
        ops.prune(**{**arguments("prune", "cuda"), "cu_frames": strided})
