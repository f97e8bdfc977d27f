"""Calls that reach every kernel, with each dtype and each way of sharing work, in little time: for compute-sanitizer.

Run by tests/sanitize.sh. With --small fewer and smaller ones, that reach every kernel and template all the same: for
the tools that slow kernels down a hundredfold. Inputs are made on the host, so that no kernel but those of fastvid_ext
need be watched. Also checks that each call repeats itself bit for bit, which a race would not.
"""

from __future__ import annotations

import sys

import torch
from helpers import judge
from helpers.calls import tensors

import fastvid_ext

OPS = torch.ops.fastvid
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
# T, N, D and frames a scene: few and many frames, one and several tiles a side, whole and cut slices, packed rows.
SHAPES = (((6, 49, 128), 2), ((3, 196, 384), 3), ((2, 300, 72), 1), ((9, 33, 101), 5))
SMALL_SHAPES = (((3, 196, 256), 2), ((4, 33, 37), 2))
WRONG = ((0, 3, 1, 2), (-7, 2, 90, 1), (5, 5), (2**31 - 1, -(2**31), 0, 3))  # boundaries that only the device holds


def video(frames: int, tokens: int, channels: int, dtype: torch.dtype, scene: int = 3) -> torch.Tensor:
    """Scenes of a few frames, so that segments of all lengths appear."""
    scenes = torch.randn(-(-frames // scene), tokens, channels).repeat_interleave(scene, 0)[:frames]
    return (scenes + 0.2 * torch.randn(frames, tokens, channels)).to(dtype).cuda()


def on_device(*bounds: int, wide: bool = False) -> torch.Tensor:
    return torch.tensor(bounds, dtype=torch.int64 if wide else torch.int32).cuda()


def calls_of(tokens: torch.Tensor, ratios: tuple[float, ...]):
    """Pairs of a name and a call of every op on one video."""
    frames, n, channels = tokens.shape
    name = f"{tokens.dtype} {frames} x {n} x {channels}"
    saliency = torch.rand(frames, n).cuda()
    cu_frames = on_device(0, frames // 2, frames)
    thin = {"thin_threshold": 0.9, "segment_threshold": 0.8}
    for r in ratios:
        yield f"prune r={r} {name}", lambda r=r: OPS.prune(tokens, saliency, retention_ratio=r)
        # Where one segment is expected, and is long, several blocks share a unit of merge.
        yield (
            f"prune, one segment, r={r} {name}",
            lambda r=r: OPS.prune(tokens, saliency, retention_ratio=r, min_segments=1, segment_threshold=-1.0),
        )
        yield (
            f"prune_padded, thinned, r={r} {name}",
            lambda r=r: OPS.prune_padded(tokens, saliency, None, cu_frames, retention_ratio=r, **thin),
        )
    some = min(n, 20)
    centers = torch.stack([torch.randperm(n)[:some].sort().values for _ in range(frames)]).cuda()
    many = torch.arange(min(n, 150)).expand(frames, -1).contiguous().cuda()
    mask = (torch.rand(frames, n) < 0.8).cuda()
    density = torch.rand(frames, n).cuda()
    features = torch.randn(frames, 40).cuda()
    yield f"scatter_merge {name}", lambda: OPS.scatter_merge(tokens, centers)
    yield f"scatter_merge, many centres {name}", lambda: OPS.scatter_merge(tokens, many, mask, merge_centers=True)
    yield f"knn_density {name}", lambda: OPS.knn_density(tokens, num_neighbors=9)
    yield f"select_peaks {name}", lambda: OPS.select_peaks(tokens, density, some, mask)
    yield f"segment {name}", lambda: OPS.segment(features, torch.tensor([0, frames // 2, frames]))
    ids, similarity = torch.arange(frames).int().cuda(), torch.rand(frames).cuda()
    yield f"plan {name}", lambda: OPS.plan(ids, similarity, n)


def all_calls(small: bool):
    for dtype in DTYPES:
        for shape, scene in SMALL_SHAPES if small else SHAPES:
            yield from calls_of(video(*shape, dtype, scene), (0.6,) if small else (0.1, 0.6))
    frames = 40 if small else 140
    tokens, saliency = video(frames, 8, 64, torch.bfloat16, scene=frames), torch.rand(frames, 8).cuda()
    for wide in (False, True):
        for bounds in WRONG:
            wrong = on_device(*bounds, wide=wide)
            yield f"wrong boundaries {bounds}", lambda c=wrong: OPS.prune_padded(tokens, saliency, None, c)
    bad = tokens.cpu()
    bad[5, 3], bad[7] = torch.nan, torch.inf
    bad = bad.cuda()
    yield "no numbers", lambda: OPS.prune(bad, saliency, retention_ratio=0.5)
    if not small:
        # More anchor frames in a segment than are merged at a time; rows of a frame that exceed shared memory.
        yield "passes", lambda: OPS.prune(tokens, saliency, retention_ratio=0.5, min_segments=1, anchor_stride=1)
        long, its_saliency = video(1, 1500, 16, torch.bfloat16), torch.rand(1, 1500).cuda()
        yield "1500 tokens", lambda: OPS.prune(long, its_saliency, retention_ratio=0.02)


def main() -> None:
    torch.manual_seed(0)
    small = "--small" in sys.argv[1:]
    count = 0
    for name, call in all_calls(small):
        one, other = ([x.cpu() for x in tensors(call())] for _ in range(2))
        assert all(map(judge.same_bits, one, other)), f"{name} differs between two calls"
        count += 1
    torch.cuda.synchronize()
    print(f"fastvid_ext {fastvid_ext.__version__}: {count} calls, twice each")


if __name__ == "__main__":
    main()
