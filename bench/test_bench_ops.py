"""The ops under pytest-benchmark: ``pytest bench --benchmark-autosave``, and later ``--benchmark-compare``.

On a GPU where there is one (32 x 196 x 3584, bf16, each call synchronized), else small shapes on the CPU.
"""

from __future__ import annotations

import itertools

import pytest
import torch

from fastvid_ext import PruneConfig, _library, retained_count

from . import inputs
from .cases import STAGES, Case

ON_GPU = torch.cuda.is_available() and _library.status.cuda_off is None
DEVICE = torch.device("cuda" if ON_GPU else "cpu")
SHAPE = {"frames": 32} if ON_GPU else {"frames": 16, "tokens_per_frame": 49, "channels": 64, "dtype": torch.float32}
CASES = [
    *(Case(op, "default", **SHAPE) for op in (*STAGES, "prune")),
    Case("prune", "one scene", scene_length=0, **SHAPE),
    Case("prune", "4 videos", videos=4, **SHAPE),
    Case("prune_padded", "llava_onevision", config=PruneConfig.llava_onevision(), **SHAPE),
    Case("prune_padded", "qwen2_5_vl", config=PruneConfig.qwen2_5_vl(retention_ratio=0.27), **SHAPE),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.op}-{case.mode.replace(' ', '_')}")
def test_op(benchmark, case):
    op = inputs.call_of(case).op
    sets = itertools.cycle([inputs.make(case, seed, DEVICE) for seed in range(6 if ON_GPU else 2)])

    def call():
        result = op(*next(sets))
        if ON_GPU:
            torch.cuda.synchronize()
        return result

    benchmark.group = case.op
    result = benchmark.pedantic(call, rounds=50 if ON_GPU else 8, warmup_rounds=5 if ON_GPU else 1)
    if case.op in ("prune", "prune_padded"):
        rows, indices, _ = result
        assert len(rows) == len(indices) == retained_count(case.frames, case.tokens_per_frame, case.config)
