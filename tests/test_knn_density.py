"""knn_density: local density of tokens."""

from __future__ import annotations

import pytest
import torch
from helpers import inputs, judge, spec

knn_density = torch.ops.fastvid.knn_density
SHAPES = [
    (1, 1, 1),
    (3, 2, 5),
    (2, 31, 32),
    (2, 33, 33),
    (4, 64, 100),
    (2, 129, 257),
    (3, 196, 64),
    (2, 255, 40),
    (2, 256, 72),
    (1, 257, 128),
    (1, 400, 1153),
    (1, 576, 96),
    (1, 729, 51),
    (1, 1024, 64),
    (1, 50, 8192),
    (40, 9, 16),
    (40, 137, 200),
    (9, 180, 520),  # halves of the products (of two-byte tokens) by clusters of several blocks
    (36, 146, 72),  # and of one
    (70, 150, 40),  # whole frames, a block each
]


def mask_of(tokens, kind: str):
    """Which tokens take part."""
    if kind == "all":
        return None
    mask = torch.rand(tokens.shape[:2], generator=inputs.generator(9)) < 0.6
    if kind == "some_frames":
        mask[::2] = False
        mask[:1, :1] = True
    return mask.to(tokens.device)


@pytest.mark.parametrize("num_neighbors", [1, 2, 4, 100])
@pytest.mark.parametrize("kind", ["all", "some"])
def test_equals_the_plain_loops(num_neighbors, kind):
    tokens = inputs.gaussian(3, 11, 6, dtype=torch.float64)
    mask = mask_of(tokens, kind)
    density = knn_density(tokens, mask, num_neighbors=num_neighbors)
    for frame in range(3):
        among = [t for t in range(11) if mask is None or mask[frame, t]]
        rho = spec.densities(tokens[frame].numpy(), among, num_neighbors)
        want = torch.tensor([rho.get(t, 0.0) for t in range(11)], dtype=torch.float64)
        torch.testing.assert_close(density[frame], want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", inputs.DTYPES, ids=str)
def test_against_float64(device, dtype, shape):
    tokens = inputs.gaussian(*shape, seed=shape[1], device=device, dtype=dtype)
    for kind in ("all", "some", "some_frames"):
        mask = mask_of(tokens, kind)
        for num_neighbors in (1, 4, shape[1], 10**12):
            judge.check_density(tokens, mask, num_neighbors, knn_density(tokens, mask, num_neighbors=num_neighbors))


@pytest.mark.parametrize("layout", inputs.LAYOUTS)
@pytest.mark.parametrize("dtype", inputs.DTYPES, ids=str)
def test_layouts(device, dtype, layout):
    tokens = inputs.laid_out(inputs.gaussian(5, 40, 36, device=device, dtype=dtype), layout)
    mask = mask_of(tokens, "some")
    judge.check_density(tokens, mask, 4, knn_density(tokens, mask))
    strided_mask = mask.T.contiguous().T
    assert torch.equal(knn_density(tokens, strided_mask), knn_density(tokens, mask))


def test_equal_tokens_have_density_one(device):
    tokens = inputs.gaussian(2, 1, 24, device=device).repeat(1, 70, 1)
    torch.testing.assert_close(knn_density(tokens), torch.ones(2, 70, device=device), rtol=0, atol=2e-6)


def test_empty(device):
    tokens = torch.ones(2, 6, 8, device=device)
    nobody = torch.zeros(2, 6, dtype=torch.bool, device=device)
    assert knn_density(tokens, nobody).tolist() == [[0.0] * 6] * 2
    assert knn_density(torch.empty(0, 6, 8, device=device)).shape == (0, 6)
