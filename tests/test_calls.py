"""Wrong arguments of every kind: always an exception that names one, never a crash, and the next right call works."""

from __future__ import annotations

import multiprocessing
import re

import pytest
import torch
from helpers import calls, inputs, judge
from hypothesis import given, settings
from hypothesis import strategies as st

ops = torch.ops.fastvid
ARGUMENTS = [
    (op, name) for op, parameters in calls.PARAMETERS.items() for name in (*calls.all_arguments(op, "cpu"), *parameters)
]


def check_refused(op: str, wrong: dict, device: str) -> None:
    """Calls op with the wrong arguments, and then with right ones."""
    right = calls.all_arguments(op, device)
    want = calls.tensors(getattr(ops, op)(**right))
    with pytest.raises(Exception) as caught:  # noqa: PT011, torch has many kinds
        getattr(ops, op)(**{**right, **wrong})
    message = str(caught.value)
    assert any(re.search(rf"\b{name}\b", message) for name in wrong), message
    assert all(map(judge.same_bits, calls.tensors(getattr(ops, op)(**right)), want))


@pytest.mark.parametrize(("op", "name"), ARGUMENTS, ids=[f"{op}-{name}" for op, name in ARGUMENTS])
def test_every_wrong_value(device, op, name):
    for wrong in calls.wrong_values(op, name, device):
        check_refused(op, {name: wrong}, device)


@settings(max_examples=300)
@given(st.data())
def test_several_wrong_values(device, data):
    op = data.draw(st.sampled_from(list(calls.PARAMETERS)))
    names = st.sampled_from([name for which, name in ARGUMENTS if which == op])
    wrong = {}
    for name in data.draw(st.lists(names, min_size=2, max_size=5, unique=True)):
        values = calls.wrong_values(op, name, device)
        wrong[name] = values[data.draw(st.integers(0, len(values) - 1))]
    check_refused(op, wrong, device)


@pytest.mark.parametrize("op", ["prune", "prune_padded", "knn_density", "select_peaks", "scatter_merge"])
@pytest.mark.cuda
def test_too_many_tokens_a_frame(op):
    tokens = torch.zeros(1, 4097, 8, device="cuda")
    more = {"prune": {"saliency": tokens[..., 0]}, "select_peaks": {"density": tokens[..., 0], "num_peaks": 1}}
    more["prune_padded"] = more["prune"]
    more["scatter_merge"] = {"centers": torch.zeros(1, 1, dtype=torch.int64, device="cuda")}
    with pytest.raises(RuntimeError, match="tokens: got N = 4097 tokens a frame on CUDA, want at most 4096"):
        getattr(ops, op)(tokens, **more.get(op, {}))


@pytest.mark.cuda
@settings(max_examples=200)
@given(
    bounds=st.lists(st.one_of(st.integers(-3, 24), st.integers(-(2**31), 2**31 - 1)), min_size=2, max_size=9),
    wide=st.booleans(),
    mode=st.sampled_from([{}, {"thin_threshold": 0.95, "segment_threshold": 0.84}]),
)
def test_wrong_boundaries_on_the_device(bounds, wide, mode):
    """They are not read back, so that no error can say so: what comes out lies within its bounds all the same."""
    case = inputs.make_case(20, 50, 32, device="cuda", dtype=torch.bfloat16, **mode)
    case.cu_frames = torch.tensor(bounds, dtype=torch.int64 if wide else torch.int32, device="cuda")
    if wide:
        case.cu_frames *= 2**20 + 1
    rows, indices, frame_counts = case.run(ops.prune_padded)
    assert rows.isfinite().all()
    assert ((indices >= -1) & (indices < 20 * 50)).all()
    assert ((frame_counts >= 0) & (frame_counts <= 50)).all()
    ids, similarity = ops.segment(case.frame_features, case.cu_frames)
    assert ((ids >= 0) & (ids < 20)).all()
    assert similarity.isfinite().all()


@pytest.mark.cuda
@pytest.mark.parametrize("op", ["prune", "prune_padded", "knn_density", "select_peaks", "scatter_merge"])
def test_out_of_memory_leaves_nothing_behind(op):
    """In a process of its own: where other calls left cached memory, nothing fails."""
    child = multiprocessing.get_context("spawn").Process(target=exhaust_memory, args=(op,))
    child.start()
    child.join()
    assert child.exitcode == 0


def exhaust_memory(op: str) -> None:
    """Lets one allocation of a call after the other fail, as ever more memory is left for it."""
    tokens = torch.randn(256, 512, 64, device="cuda")  # odd strides, which take a packed copy
    tokens = torch.cat([tokens, tokens], dim=2)[..., 1:65]
    saliency, centers = tokens[..., 0].contiguous(), torch.arange(200, device="cuda").expand(256, 200)
    more = {
        "prune": {"saliency": saliency, "retention_ratio": 0.4},
        "prune_padded": {"saliency": saliency, "retention_ratio": 0.4, "thin_threshold": 0.9},
        "select_peaks": {"density": saliency, "num_peaks": 9},
        "scatter_merge": {"centers": centers},
    }.get(op, {})
    torch.cuda.empty_cache()  # or the results would keep a larger piece of memory from being given back
    want = calls.tensors(getattr(ops, op)(tokens, **more))
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    getattr(ops, op)(tokens, **more)
    needed = torch.cuda.max_memory_allocated() - before
    total = torch.cuda.get_device_properties(0).total_memory
    failures = []
    for left in range(0, needed, max(1, needed // 12)):
        torch.cuda.empty_cache()
        torch.cuda.set_per_process_memory_fraction(min(1.0, (torch.cuda.memory_reserved() + left) / total))
        try:
            getattr(ops, op)(tokens, **more)
        except RuntimeError as error:  # torch's stable ABI tells no more of it than that a call failed
            failures.append(error)
        assert torch.cuda.memory_allocated() == before
    torch.cuda.set_per_process_memory_fraction(1.0)
    assert len(failures) >= 2
    assert all(map(judge.same_bits, calls.tensors(getattr(ops, op)(tokens, **more)), want))
    torch.cuda.synchronize()
