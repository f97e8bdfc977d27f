"""select_peaks: the choice of centres by density and distance."""

from __future__ import annotations

import pytest
import torch
from helpers import inputs, judge, spec
from test_knn_density import SHAPES, mask_of

knn_density, select_peaks = torch.ops.fastvid.knn_density, torch.ops.fastvid.select_peaks


@pytest.mark.parametrize("num_peaks", [0, 1, 3, 11])
@pytest.mark.parametrize("kind", ["all", "some"])
def test_equals_the_plain_loops(num_peaks, kind):
    tokens = inputs.gaussian(3, 11, 6, dtype=torch.float64)
    mask = mask_of(tokens, kind)
    centers, score = select_peaks(tokens, knn_density(tokens, mask), num_peaks, mask)
    for frame, x in enumerate(tokens.numpy()):
        among = [t for t in range(11) if mask is None or mask[frame, t]]
        gamma = spec.scores(x, spec.densities(x, among, 4))
        want = torch.tensor([gamma.get(t, 0.0) for t in range(11)], dtype=torch.float64)
        torch.testing.assert_close(score[frame], want, rtol=1e-9, atol=1e-12)
        chosen = spec.top(gamma, num_peaks, among)
        assert centers[frame].tolist() == chosen + [-1] * (num_peaks - len(chosen))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", inputs.DTYPES, ids=str)
def test_against_float64(device, dtype, shape):
    tokens = inputs.gaussian(*shape, seed=shape[1], device=device, dtype=dtype)
    for kind in ("all", "some", "some_frames"):
        mask = mask_of(tokens, kind)
        density = knn_density(tokens, mask)
        for num_peaks in sorted({0, 1, shape[1] // 7, shape[1] // 2, shape[1]}):
            result = select_peaks(tokens, density, num_peaks, mask)
            judge.check_select_peaks(tokens, density, num_peaks, mask, result)


@pytest.mark.parametrize("layout", inputs.LAYOUTS)
@pytest.mark.parametrize("dtype", inputs.DTYPES, ids=str)
def test_layouts(device, dtype, layout):
    tokens = inputs.laid_out(inputs.gaussian(5, 40, 36, device=device, dtype=dtype), layout)
    mask = mask_of(tokens, "some")
    density = knn_density(tokens, mask)
    judge.check_select_peaks(tokens, density, 9, mask, select_peaks(tokens, density, 9, mask))
    strided = [x.T.contiguous().T for x in (density, mask)]
    got = select_peaks(tokens, strided[0], 9, strided[1])
    assert all(map(torch.equal, got, select_peaks(tokens, density, 9, mask)))


@pytest.mark.parametrize("seed", range(3))
def test_density_need_not_be_a_density(device, seed):
    """Any numbers do: few distinct ones, negative ones, with ties by the lower index."""
    tokens = inputs.gaussian(3, 30, 16, device=device, seed=seed)
    density = (inputs.gaussian(3, 30, seed=seed + 10) * 2).round().abs().to(device) + 0.5
    judge.check_select_peaks(tokens, density, 12, None, select_peaks(tokens, density, 12))


def test_ties_go_to_the_lower_index(device):
    """Corners of a square: all densities equal, so corner 0 is the densest and its score the diagonal."""
    tokens = torch.tensor([[[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]], device=device)
    density = torch.ones(1, 4, device=device)
    centers, score = select_peaks(tokens, density, 2)
    torch.testing.assert_close(score[0], torch.tensor([1.0, 0.5**0.5, 0.5**0.5, 0.5**0.5], device=device))
    assert centers.tolist() == [[0, 1]]


def test_equal_tokens(device):
    tokens = torch.full((1, 50, 32), 0.5, device=device)
    centers, score = select_peaks(tokens, knn_density(tokens), 5)
    assert centers.tolist() == [[0, 1, 2, 3, 4]]
    assert score.tolist() == [[0.0] * 50]


def test_empty(device):
    tokens = torch.ones(2, 6, 8, device=device)
    nobody = torch.zeros(2, 6, dtype=torch.bool, device=device)
    centers, score = select_peaks(tokens, torch.ones(2, 6, device=device), 3, nobody)
    assert centers.tolist() == [[-1] * 3] * 2
    assert score.tolist() == [[0.0] * 6] * 2
    none = torch.empty(0, 6, 8, device=device)
    assert [x.shape for x in select_peaks(none, none[..., 0], 3)] == [(0, 3), (0, 6)]
