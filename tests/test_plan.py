"""plan: how budgets are shared. Integers throughout, so every path must agree exactly."""

from __future__ import annotations

import pytest
import torch
from helpers import inputs, spec

from fastvid_ext import PruneConfig

plan = torch.ops.fastvid.plan
MODES = {
    "default": {},
    "drop": {"spread_remainder": False},
    "thin": {"thin_threshold": 0.5},
    "thin_drop": {"thin_threshold": 0.5, "spread_remainder": False},
}


def random_segments(frames: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Segments of 1 to many frames, and similarities of which half are below 0.5."""
    rng = inputs.generator(seed)
    rate = 10 ** float(-2 * torch.rand((), generator=rng))
    ids = (torch.rand(frames, generator=rng) < rate).cumsum(0).int()
    return ids, torch.rand(frames, generator=rng)


def planned(ids, similarity, n, config):
    """By the plain loops."""
    lengths = torch.unique_consecutive(ids, return_counts=True)[1].tolist()
    parts = similarity.split(lengths) if len(ids) else []
    shares = [share for part in parts for share in spec.plan_segment(part.tolist(), n, config)]
    return [salient for salient, _ in shares], [centers for _, centers in shares]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("seed", range(12))
def test_equals_the_plain_loops(device, mode, seed):
    rng = inputs.generator(seed)
    frames = [1, 2, 7, 33, 64, 130][seed % 6]
    ids, similarity = random_segments(frames, seed)
    for _ in range(6):
        n = int(torch.randint(1, 200, (), generator=rng))
        config = PruneConfig(
            retention_ratio=max(1e-3, float(torch.rand((), generator=rng, dtype=torch.float64))),
            context_ratio=round(float(torch.rand((), generator=rng, dtype=torch.float64)) * 1.2, 2) % 1.01,
            anchor_stride=int(torch.randint(1, 9, (), generator=rng)),
            **MODES[mode],
        )
        budget = {
            name: getattr(config, name)
            for name in ("retention_ratio", "context_ratio", "anchor_stride", "thin_threshold", "spread_remainder")
        }
        num_salient, num_context = plan(ids.to(device), similarity.to(device), n, **budget)
        assert num_salient.dtype == num_context.dtype == torch.int32
        assert (num_salient.tolist(), num_context.tolist()) == planned(ids, similarity, n, config), config


@pytest.mark.parametrize(("n", "ratio"), [(196, 0.1), (196, 0.29), (100, 0.29), (10, 0.3), (3, 1 / 3), (7, 0.999)])
def test_budget_truncates_the_double_product(device, n, ratio):
    """int(N * r) as IEEE doubles give it: 100 * 0.29 is 28.999999999999996."""
    ids = torch.zeros(4, dtype=torch.int32, device=device)
    num_salient, num_context = plan(ids, torch.ones(4, device=device), n, retention_ratio=ratio)
    assert int(num_salient.sum() + num_context.sum()) == 4 * max(1, int(n * ratio))


@pytest.mark.parametrize("frames", [1, 511, 512, 513, 4096])
@pytest.mark.parametrize("mode", MODES)
def test_many_frames(device, frames, mode):
    ids, similarity = random_segments(frames, frames)
    num_salient, num_context = plan(ids.to(device), similarity.to(device), 49, **MODES[mode])
    assert (num_salient.tolist(), num_context.tolist()) == planned(ids, similarity, 49, PruneConfig(**MODES[mode]))


def test_ids_need_not_ascend(device):
    """A segment is a run of equal ids, whatever they are."""
    ids = torch.tensor([5, 5, 2, 2, 2, 5], dtype=torch.int32)
    similarity = torch.ones(6)
    want = planned(torch.tensor([0, 0, 1, 1, 1, 2]), similarity, 30, PruneConfig())
    got = plan(ids.to(device), similarity.to(device), 30)
    assert tuple(part.tolist() for part in got) == want


def test_strided_arguments(device):
    ids, similarity = random_segments(40, 1)
    want = plan(ids.to(device), similarity.to(device), 64, thin_threshold=0.5)
    twice = [x.to(device).repeat_interleave(2)[::2] for x in (ids, similarity)]
    assert all(map(torch.equal, plan(*twice, 64, thin_threshold=0.5), want))


def test_no_frames(device):
    empty = torch.empty(0, device=device)
    assert [part.shape for part in plan(empty.int(), empty, 8)] == [(0,), (0,)]
