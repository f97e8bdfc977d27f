"""The edges of the algorithm: defined by its rules, none an error."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from helpers import inputs, judge, spec

MODES = {
    "default": {},
    "onevision": {"spread_remainder": False, "merge_centers": True},
    "qwen": {"thin_threshold": 0.95, "segment_threshold": 0.84},
}
mode_of = pytest.mark.parametrize("mode", MODES)


def judged(case: inputs.Case) -> int:
    args, _ = case.arguments()
    return judge.check_prune(*args, case.config, case.run())


@mode_of
@pytest.mark.parametrize(
    ("shape", "config"),
    [
        ((1, 40, 32), {}),  # F = 1
        ((3, 40, 32), {"min_segments": 8}),  # F < c
        ((6, 3, 32), {"num_neighbors": 4, "retention_ratio": 0.7}),  # N < k
        ((6, 1, 32), {}),  # N = 1
        ((6, 40, 32), {"context_ratio": 0.0}),  # d = 0
        ((6, 40, 32), {"context_ratio": 1.0}),  # d = 1
        ((6, 40, 32), {"context_ratio": 1.0, "retention_ratio": 0.9}),
        ((6, 40, 32), {"merge_floor": 0.0}),
        ((6, 40, 32), {"merge_floor": 1.0}),
        ((6, 40, 32), {"retention_ratio": 1e-9}),  # R = 1
        ((6, 40, 32), {"retention_ratio": 0.975}),  # R = N - 1: a frame has one non-salient token
        ((6, 40, 32), {"retention_ratio": 0.975, "context_ratio": 0.0}),
    ],
    ids=str,
)
def test_small_numbers(device, mode, shape, config):
    assert judged(inputs.make_case(*shape, device=device, **{**MODES[mode], **config})) == 0


@mode_of
@pytest.mark.parametrize("dtype", inputs.DTYPES, ids=str)
@pytest.mark.parametrize("context_ratio", [0.0, 0.4, 1.0])
def test_nothing_to_prune(device, mode, dtype, context_ratio):
    """Where R == N the output is the input, even where it is not a number."""
    config = {**MODES[mode], "retention_ratio": 1.0, "context_ratio": context_ratio}
    case = inputs.make_case(7, 12, 20, device=device, dtype=dtype, **config)
    case.tokens[2, 3] = torch.nan
    rows, indices, frame_counts = case.run()
    assert judge.same_bits(rows, case.tokens.flatten(0, 1))
    assert indices.tolist() == list(range(7 * 12))
    assert frame_counts.tolist() == [12] * 7


@mode_of
@pytest.mark.parametrize("op", ["prune", "prune_padded"])
@pytest.mark.parametrize("cu_frames", [None, [0, 0], [0, 0, 0]], ids=str)
def test_no_frames(device, mode, op, cu_frames):
    case = inputs.make_case(1, 12, 20, device=device, cu_frames=cu_frames, **MODES[mode])
    case.tokens, case.saliency, case.frame_features = case.tokens[:0], case.saliency[:0], case.frame_features[:0]
    for features in (case.frame_features, None):
        case.frame_features = features
        rows, indices, frame_counts = case.run(getattr(torch.ops.fastvid, op))
        assert (rows.shape, indices.shape, frame_counts.shape) == ((0, 20), (0,), (0,))
        assert (rows.dtype, indices.dtype, frame_counts.dtype) == (torch.float32, torch.int64, torch.int32)


def plain(case: inputs.Case):
    return spec.prune(
        case.tokens.double().cpu().numpy(),
        case.saliency.double().cpu().numpy(),
        None if case.frame_features is None else case.frame_features.double().cpu().numpy(),
        case.cu_frames,
        case.config,
    )


@mode_of
@pytest.mark.parametrize("dtype", inputs.DTYPES, ids=str)
def test_all_tokens_equal(device, mode, dtype):
    """Every choice is a tie: lower indices win, and a token's mean with its likes is itself."""
    case = inputs.make_case(10, 20, 16, device=device, dtype=dtype, retention_ratio=0.4, min_segments=4, **MODES[mode])
    case.tokens, case.frame_features = torch.full_like(case.tokens, 0.5), None
    case.saliency = torch.zeros_like(case.saliency)
    rows, indices, frame_counts = case.run()
    want_rows, want_indices, want_counts = plain(case)
    assert indices.tolist() == want_indices
    assert frame_counts.tolist() == want_counts
    torch.testing.assert_close(rows.double().cpu(), torch.from_numpy(want_rows), rtol=1e-6, atol=0)


@mode_of
@pytest.mark.parametrize("dtype", inputs.DTYPES, ids=str)
@pytest.mark.parametrize("zeros", ["some_tokens", "a_frame", "everything", "features"])
def test_zeros(device, mode, dtype, zeros):
    """The cosine with a zero vector is 0, so its token goes to the first centre unless another is unlike it."""
    case = inputs.make_case(10, 20, 32, device=device, dtype=dtype, retention_ratio=0.4, seed=8, **MODES[mode])
    if zeros == "some_tokens":
        case.tokens[:, ::5] = 0
    elif zeros == "a_frame":
        case.tokens[4] = 0
    elif zeros == "everything":
        case.tokens.zero_()
    else:
        case.frame_features.zero_()
    rows, indices, frame_counts = case.run()
    want_rows, want_indices, want_counts = plain(case)
    assert indices.tolist() == want_indices
    assert frame_counts.tolist() == want_counts
    error = judge.SUM_ERROR * case.tokens.double().abs().amax().cpu()
    assert judge.check_rows(rows.cpu(), torch.from_numpy(want_rows), error).all()


@mode_of
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("share", [0.001, 0.1, 1.0])
@pytest.mark.parametrize("dtype", inputs.DTYPES, ids=str)
def test_values_that_are_no_numbers(device, mode, bad, share, dtype):
    """No crash, no index out of range, and the salient rows as they are."""
    case = inputs.make_case(14, 30, 24, device=device, dtype=dtype, retention_ratio=0.3, **MODES[mode])
    case.tokens[(torch.rand(case.tokens.shape, generator=inputs.generator(1)) < share).to(device)] = bad
    for features in (None, case.frame_features, torch.full_like(case.frame_features, bad)):
        case.frame_features = features
        rows, indices, frame_counts = case.run()
        assert (indices[1:] > indices[:-1]).all()
        assert indices[0] >= 0
        assert indices[-1] < 14 * 30
        assert rows.shape == (len(indices), 24)
        assert torch.equal(frame_counts, torch.bincount(indices // 30, minlength=14).int())
        assert len(indices) == 14 * 9 or not case.config.exact_count
        for frame, (row, kept) in enumerate(zip(case.saliency, frame_counts.tolist())):
            salient = set(indices[indices // 30 == frame].tolist())
            assert frame * 30 + int(row.argmax()) in salient or kept == 0 or case.config.thin_threshold


@pytest.mark.parametrize("op", ["knn_density", "select_peaks", "scatter_merge"])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_stages_of_values_that_are_no_numbers(device, op, bad):
    """Frames beside the bad one are what they are alone, and indices stay in range."""
    tokens = inputs.gaussian(3, 40, 24, device=device)
    centers = torch.arange(0, 40, 8, device=device).expand(3, 5)
    calls = {
        "knn_density": lambda x: (torch.ops.fastvid.knn_density(x),),
        "select_peaks": lambda x: torch.ops.fastvid.select_peaks(x, torch.ops.fastvid.knn_density(x), 7),
        "scatter_merge": lambda x: torch.ops.fastvid.scatter_merge(x, centers),
    }
    want = calls[op](tokens)
    for where in ((1, 5), (1,)):
        broken = tokens.clone()
        broken[where] = bad
        for got, good in zip(calls[op](broken), want):
            assert judge.same_bits(got[[0, 2]], good[[0, 2]])
            if got.dtype == torch.int64:
                assert ((got >= -1) & (got < 40)).all()


def test_a_segment_keeps_its_budget_at_high_ratios(device):
    """From r = 0.46 on anchor frames must come closer together than anchor_stride, so that the centres find room."""
    for ratio in (0.46, 0.5, 0.6, 0.8, 0.99):
        case = inputs.make_case(12, 50, 32, device=device, retention_ratio=ratio, min_segments=2)
        assert judged(case) == 0
        args, kwargs = case.arguments()
        assert torch.ops.fastvid.prune(*args, **kwargs)[1].numel() == 12 * int(50 * ratio)


@mode_of
def test_repeated_blocks(device, mode):
    """Letterbox bars: many tokens of a frame are bit for bit the same; equals choose alike."""
    case = inputs.make_case(12, 48, 32, device=device, retention_ratio=0.3, min_segments=3, **MODES[mode])
    case.tokens[:, :12] = case.tokens[0, 0]
    case.tokens[:, 36:] = case.tokens[0, 0]
    case.tokens = (case.tokens * 8).round() / 8  # exact products and sums
    wider = dataclasses.replace(
        case, tokens=case.tokens.double().cpu(), saliency=case.saliency.cpu(), frame_features=case.frame_features.cpu()
    )
    _, indices, frame_counts = case.run()
    _, want_indices, want_counts = plain(wider)
    assert indices.tolist() == want_indices
    assert frame_counts.tolist() == want_counts
