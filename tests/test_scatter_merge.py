"""scatter_merge: merging tokens into centres."""

from __future__ import annotations

import pytest
import torch
from helpers import inputs, judge, spec
from test_knn_density import mask_of

scatter_merge = torch.ops.fastvid.scatter_merge


def centers_of(batch: int, n: int, count: int, seed: int = 0, missing: bool = False) -> torch.Tensor:
    """Distinct tokens of each frame, ascending; with -1 at the end of some frames where `missing`."""
    rng = inputs.generator(seed)
    centers = torch.stack([torch.randperm(n, generator=rng)[:count].sort().values for _ in range(batch)])
    if missing:
        for frame in range(0, batch, 2):
            centers[frame, int(torch.randint(0, count + 1, (), generator=rng)) :] = -1
    return centers


@pytest.mark.parametrize("merge_centers", [False, True])
@pytest.mark.parametrize("merge_floor", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("kind", ["all", "some"])
@pytest.mark.parametrize("count", [1, 3, 11])
def test_equals_the_plain_loops(merge_centers, merge_floor, kind, count):
    tokens = inputs.gaussian(3, 11, 6, dtype=torch.float64)
    mask, centers = mask_of(tokens, kind), centers_of(3, 11, count)
    merged, assignment, counts = scatter_merge(
        tokens, centers, mask, merge_floor=merge_floor, merge_centers=merge_centers
    )
    for frame, x in enumerate(tokens.numpy()):
        mine = centers[frame].tolist()
        members = [t for t in range(11) if (mask is None or mask[frame, t]) and (merge_centers or t not in mine)]
        rows, chosen = spec.merge(x, mine, members, merge_floor)
        for got, want in zip(merged[frame], rows):
            torch.testing.assert_close(got, torch.from_numpy(want), rtol=1e-12, atol=1e-12)
        assert assignment[frame].tolist() == [chosen.get(t, -1) for t in range(11)]
        assert counts[frame].tolist() == [list(chosen.values()).count(c) for c in range(count)]


@pytest.mark.parametrize(
    ("shape", "count"),
    [
        ((1, 1, 1), 1),
        ((3, 7, 33), 2),
        ((2, 64, 64), 16),
        ((2, 65, 40), 17),
        ((4, 100, 127), 33),
        ((2, 150, 96), 64),
        ((2, 150, 96), 65),
        ((1, 200, 72), 129),
        ((1, 300, 32), 300),
        ((2, 196, 1153), 8),
        ((1, 576, 64), 24),
        ((1, 729, 100), 72),
        ((1, 1024, 48), 200),
        ((1, 60, 8192), 6),
        ((40, 9, 32), 2),
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype", inputs.DTYPES, ids=str)
def test_against_float64(device, dtype, shape, count):
    batch, n, channels = shape
    make = inputs.exact_values if channels == 1 else inputs.gaussian
    tokens = make(*shape, seed=n, device=device, dtype=dtype)
    doubts = 0
    for kind, missing in (("all", False), ("some", False), ("some_frames", True)):
        mask, centers = mask_of(tokens, kind), centers_of(batch, n, count, n, missing).to(device)
        for merge_floor, merge_centers in ((0.6, False), (0.0, True)):
            result = scatter_merge(tokens, centers, mask, merge_floor=merge_floor, merge_centers=merge_centers)
            doubts += judge.check_scatter_merge(tokens, centers, mask, merge_floor, merge_centers, result)
    assert doubts <= 3


@pytest.mark.parametrize("layout", inputs.LAYOUTS)
@pytest.mark.parametrize("dtype", inputs.DTYPES, ids=str)
def test_layouts(device, dtype, layout):
    tokens = inputs.laid_out(inputs.gaussian(5, 40, 36, device=device, dtype=dtype), layout)
    mask, centers = mask_of(tokens, "some"), centers_of(5, 40, 7).to(device)
    result = scatter_merge(tokens, centers, mask)
    judge.check_scatter_merge(tokens, centers, mask, 0.6, False, result)
    strided = scatter_merge(tokens, centers.T.contiguous().T, mask.T.contiguous().T)
    assert all(map(torch.equal, strided, result))


def test_ties_go_to_the_lower_place(device):
    """Every token resembles both centres alike; places count, in whatever order the centres are given."""
    tokens = torch.tensor([[[1.0, 0.0], [1.0, 0.0], [2.0, 0.0], [0.0, 1.0]]], device=device)
    merged, assignment, counts = scatter_merge(tokens, torch.tensor([[1, 0]], device=device), merge_floor=0.0)
    assert assignment.tolist() == [[-1, -1, 0, 0]]
    assert counts.tolist() == [[2, 0]]
    assert merged.tolist() == [[[1.0, 1 / 3 + 1 / 3 - 1 / 3], [1.0, 0.0]]] or merged[0, 1].tolist() == [1.0, 0.0]


def test_weights(device):
    """A centre keeps 1 / (n + 1), but no less than the floor, and is untouched where nothing merges into it."""
    tokens = torch.tensor([[[4.0, 0.0], [0.0, 4.0], [0.0, 8.0], [0.0, 16.0]]], device=device)
    centers = torch.tensor([[0, 1]], device=device)
    for floor, row in ((0.0, 4 / 3 + 12 * 2 / 3), (0.5, 2 + 6), (1.0, 4.0)):
        merged, _, counts = scatter_merge(tokens, centers, merge_floor=floor)
        assert counts.tolist() == [[0, 2]]
        torch.testing.assert_close(merged[0].cpu(), torch.tensor([[4.0, 0.0], [0.0, row]]))


def test_zero_tokens_go_to_the_first_centre(device):
    tokens = inputs.gaussian(1, 12, 32, device=device)
    tokens[0, 5:] = 0
    _, assignment, _ = scatter_merge(tokens, torch.tensor([[1, 3]], device=device))
    assert assignment[0, 5:].tolist() == [0] * 7


def test_no_centre(device):
    tokens = inputs.gaussian(2, 6, 8, device=device)
    for centers in (torch.full((2, 3), -1), torch.empty(2, 0, dtype=torch.int64)):
        merged, assignment, counts = scatter_merge(tokens, centers.to(device), merge_centers=True)
        assert merged.shape == (2, centers.shape[1], 8)
        assert not merged.any()
        assert not counts.any()
        assert (assignment == -1).all()
    merged, assignment, counts = scatter_merge(tokens[:0], torch.empty(0, 3, dtype=torch.int64, device=device))
    assert [x.shape for x in (merged, assignment, counts)] == [(0, 3, 8), (0, 6), (0, 3)]
