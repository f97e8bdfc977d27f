"""Calls that reach every kernel, with each dtype and each way of sharing work, in little time: for compute-sanitizer.

Run by tests/sanitize.sh. Also checks that each call repeats itself bit for bit, which a race would not.
"""

from __future__ import annotations

import torch

import fastvid_ext

OPS = torch.ops.fastvid
DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def video(frames: int, tokens: int, channels: int, dtype: torch.dtype, scene: int = 3) -> torch.Tensor:
    """Scenes of a few frames, so that segments of all lengths appear."""
    scenes = torch.randn(-(-frames // scene), tokens, channels, device="cuda").repeat_interleave(scene, 0)[:frames]
    return (scenes + 0.2 * torch.randn(frames, tokens, channels, device="cuda")).to(dtype)


def same(one, other) -> bool:
    one, other = ((x,) if isinstance(x, torch.Tensor) else x for x in (one, other))
    return all(torch.equal(a.view(torch.uint8), b.view(torch.uint8)) for a, b in zip(one, other))


def calls():
    """Pairs of a name and a call."""
    for dtype in DTYPES:
        # T, N, D: few and many frames, one and several tiles a side, whole and cut slices, packed rows.
        for shape, scene in (((6, 49, 128), 2), ((3, 196, 384), 3), ((2, 300, 72), 1), ((9, 33, 101), 5)):
            tokens = video(*shape, dtype, scene)
            saliency = torch.rand(shape[:2], device="cuda")
            cu_frames = torch.tensor([0, shape[0] // 2, shape[0]], device="cuda", dtype=torch.int32)
            for ratio in (0.1, 0.6):
                name = f"{dtype} {shape} r={ratio}"
                yield f"prune {name}", lambda t=tokens, s=saliency, r=ratio: OPS.prune(t, s, retention_ratio=r)
                yield (
                    f"prune_padded, thinned {name}",
                    lambda t=tokens, s=saliency, c=cu_frames, r=ratio: OPS.prune_padded(
                        t, s, None, c, retention_ratio=r, thin_threshold=0.9, segment_threshold=0.8
                    ),
                )
            centers = torch.stack([torch.randperm(shape[1], device="cuda")[:20].sort().values for _ in tokens])
            yield f"scatter_merge {dtype} {shape}", lambda t=tokens, c=centers: OPS.scatter_merge(t, c)
            yield f"knn_density {dtype} {shape}", lambda t=tokens: OPS.knn_density(t, num_neighbors=9)
    tokens = video(140, 8, 64, torch.bfloat16, scene=140)
    saliency = torch.rand(140, 8, device="cuda")
    # More anchor frames in a segment than are merged at a time.
    yield "passes", lambda: OPS.prune(tokens, saliency, retention_ratio=0.5, min_segments=1, anchor_stride=1)


def main() -> None:
    torch.manual_seed(0)
    count = 0
    for name, call in calls():
        assert same(call(), call()), f"{name} differs between two calls"
        count += 1
    torch.cuda.synchronize()
    print(f"fastvid_ext {fastvid_ext.__version__}: {count} calls, twice each")


if __name__ == "__main__":
    main()
