"""Values that nobody sends on purpose, in one video of a batch, against float64; the videos beside it must not notice.

The batch holds three videos, and the middle one gets the values. Where they are numbers whose squares float32 holds,
every choice is judged as ever. Where they are not (NaN, Inf, squares that overflow), what docs/algorithm.md promises is
asked for: indices in range, salient rows as they are, the right number of rows, and the other videos bit for bit as
with a harmless one in the middle.
"""

from __future__ import annotations

import math

import pytest
import torch
from helpers import inputs, judge, spec

BOUNDS = (0, 9, 20, 30)
BAD = slice(BOUNDS[1], BOUNDS[2])
N, D = 36, 40
MODES = {
    "default": {},
    "onevision": {"spread_remainder": False, "merge_centers": True},
    "qwen": {"thin_threshold": 0.95, "segment_threshold": 0.84},
}
mode_of = pytest.mark.parametrize("mode", MODES)
dtype_of = pytest.mark.parametrize("dtype", inputs.DTYPES, ids=str)


def batch(device, dtype, mode, features: int | None = None, **config) -> inputs.Case:
    config = {"retention_ratio": 0.25, "min_segments": 3, **MODES[mode], **config}
    case = inputs.make_case(
        30, N, D, device=device, dtype=dtype, features=features, cu_frames=list(BOUNDS), seed=3, **config
    )
    case.tokens = ((case.tokens * 8).round() / 8).to(dtype)  # exact sums, so that equal tokens are equally far apart
    return case


def check_neighbours(got, want) -> None:
    """The other videos are in both results bit for bit the same, and all of the first is in range."""
    rows, indices, frame_counts = got
    assert rows.shape == (len(indices), D)
    assert ((indices >= 0) & (indices < 30 * N)).all()
    assert (indices[1:] > indices[:-1]).all()
    assert torch.equal(frame_counts, torch.bincount(indices // N, minlength=30).int())
    others = [~((index // N >= BAD.start) & (index // N < BAD.stop)) for _, index, _ in (got, want)]
    assert torch.equal(indices[others[0]], want[1][others[1]])
    assert judge.same_bits(rows[others[0]], want[0][others[1]])


# ---- tokens that are numbers ---------------------------------------------------------------------------------------


def all_equal(x):
    x[:] = 0.5


def all_equal_but_one(x):
    x[:] = 0.5
    x[5, 7] = -3.0


def letterbox(x):
    """Bars above and below the picture: the same token in a third of the places."""
    x[:, :6] = x[0, 0].clone()
    x[:, -6:] = x[0, 0].clone()


def repeated_frames(x):
    x[:] = x[0].clone()


def pairs_of_equals(x):
    x[:, ::2] = x[:, 1::2].clone()


def some_zero_tokens(x):
    x[:, ::5] = 0


def a_zero_frame(x):
    x[4] = 0


def all_zero(x):
    x[:] = 0


def negative_zeros(x):
    x[:] = -0.0


def one_hot(x):
    x[:] = torch.eye(D, dtype=x.dtype, device=x.device)[torch.arange(x.shape[0] * N) % D].view_as(x)


def one_hot_of_two_lengths(x):
    one_hot(x)
    x[::2] *= 2


def one_loud_channel(x):
    x[..., 3] = 1000.0


def one_loud_token(x):
    x[6, 9] = 3000.0


def some_subnormal_tokens(x):
    x[1, 3:5] = x[1, 3:5].sign() * torch.finfo(x.dtype).smallest_normal / 4


def all_subnormal(x):
    x[:] = x.sign() * torch.finfo(x.dtype).smallest_normal / 4


def squares_underflow(x):
    x *= 2.0**-13 if x.dtype == torch.float16 else 2.0**-70


def squares_overflow_fp16(x):
    x *= 2.0**11


def near_the_end_of_fp16(x):
    x *= 60000 / x.abs().amax().float()


NUMBERS = [
    all_equal, all_equal_but_one, letterbox, repeated_frames, pairs_of_equals, some_zero_tokens, a_zero_frame, all_zero,
    negative_zeros, one_hot, one_hot_of_two_lengths, one_loud_channel, one_loud_token, some_subnormal_tokens,
    all_subnormal, squares_underflow, squares_overflow_fp16, near_the_end_of_fp16,
]  # fmt: skip


@mode_of
@dtype_of
@pytest.mark.parametrize("change", NUMBERS, ids=lambda change: change.__name__)
def test_numbers(device, dtype, mode, change):
    case = batch(device, dtype, mode)
    want = case.run()
    change(case.tokens[BAD])
    check_neighbours(case.run(), want)
    judge.check_case(case, case.run())


@mode_of
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("share", [0.2, 0.8])
def test_near_the_end_of_float32(device, dtype, mode, share):
    """Squared norms, and four times those as distances need them, just below float32's largest number."""
    case = batch(device, dtype, mode)
    want = case.run()
    longest = case.tokens[BAD].double().norm(dim=-1).amax()
    case.tokens[BAD] *= math.sqrt(share * torch.finfo(torch.float32).max / 4) / longest.item()
    check_neighbours(case.run(), want)
    judge.check_case(case, case.run())


# ---- tokens that are none ------------------------------------------------------------------------------------------


@mode_of
@dtype_of
@pytest.mark.parametrize("where", ["channel", "token", "frame", "video", "every_other_token"])
@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "both_infinities", "overflow"])
def test_no_numbers(device, dtype, mode, where, value):
    case = batch(device, dtype, mode)
    want = case.run()
    bad = case.tokens[BAD]
    part = {
        "channel": (5, 7, 3),
        "token": (5, 7),
        "frame": (5,),
        "video": (),
        "every_other_token": (slice(None), slice(None, None, 2)),
    }[where]
    if value == "both_infinities":
        bad[part] = torch.where(bad[part] > 0, math.inf, -math.inf).to(dtype)
    elif value == "overflow":  # finite, but squares are not
        bad[part] = torch.finfo(dtype).max
    else:
        bad[part] = float(value)
    for _ in range(2):
        got = case.run()
        check_neighbours(got, want)
    rows, indices, frame_counts = got
    assert len(indices) == 30 * 9 or not case.config.exact_count
    for frame in range(*BAD.indices(30)):  # the most salient token of every frame with a budget is kept as it is
        best = frame * N + int(case.saliency[frame].argmax())
        if frame_counts[frame] > 0 and case.config.thin_threshold is None:
            row = rows[indices == best]
            assert judge.same_bits(row, case.tokens.flatten(0, 1)[best : best + 1])


@mode_of
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("frames", [[12], list(range(9, 20))], ids=["one_frame", "video"])
def test_frame_features_that_are_no_numbers(device, mode, bad, frames):
    case = batch(device, torch.float32, mode, features=24)
    want = case.run()
    case.frame_features[frames] = bad
    check_neighbours(case.run(), want)


# ---- saliency ------------------------------------------------------------------------------------------------------


@mode_of
@pytest.mark.parametrize("dtype", [*inputs.DTYPES, torch.float64], ids=str)
@pytest.mark.parametrize(
    "kind", ["constant", "all_nan", "one_nan", "descending", "ascending", "zeros", "infinite", "subnormal"]
)
def test_saliency(device, dtype, mode, kind):
    case = batch(device, torch.bfloat16, mode)
    case.saliency = case.saliency.to(dtype)
    want = case.run()
    bad = case.saliency[BAD]
    if kind == "constant":
        bad[:] = 0.25
    elif kind == "all_nan":
        bad[:] = math.nan
    elif kind == "one_nan":
        bad[:, 4] = math.nan
    elif kind == "descending":
        bad.copy_(bad.sort(1, descending=True).values)
    elif kind == "ascending":
        bad.copy_(bad.sort(1).values)
    elif kind == "zeros":
        bad[:] = 0.0
        bad[:, ::3] = -0.0
    elif kind == "infinite":
        bad[:, ::3], bad[:, 1::3] = math.inf, -math.inf
    else:
        bad *= torch.finfo(dtype).smallest_normal / 4
    check_neighbours(case.run(), want)
    judge.check_case(case, case.run())


# ---- similarities --------------------------------------------------------------------------------------------------


def next_float(x: float, towards: float) -> float:
    return torch.nextafter(torch.tensor(float(x)), torch.tensor(float(towards))).item()


@pytest.mark.parametrize("dtype", inputs.DTYPES, ids=str)
@pytest.mark.parametrize("parameter", ["segment_threshold", "thin_threshold"])
@pytest.mark.parametrize("at", [0.5, next_float(0.5, 1), next_float(0.5, 0), 0.0, next_float(0, 1), next_float(0, -1)])
def test_similarities_at_a_threshold(device, dtype, parameter, at):
    """Cosines of exactly 0.5 and 0: a cut wants less than the threshold, to the last bit."""
    case = inputs.make_case(24, 16, 32, device=device, dtype=dtype, retention_ratio=0.25, context_ratio=0.5)
    features = torch.zeros(24, 4, dtype=dtype, device=device)
    features[:, 0] = 1.0
    features[::3] = 1.0  # (1, 1, 1, 1) between (1, 0, 0, 0) on both sides: 0.5 twice, then 1
    features[9:12] = 0.0  # similar to nothing
    case.frame_features = features
    parameters = {"min_segments": 1, "segment_threshold": 0.25, "thin_threshold": None, parameter: at}
    case.config = inputs.PruneConfig(**{**case.config.to_kwargs(), **parameters})
    similarity = [-1.0 if i == 23 else x for i, x in enumerate(spec.similarities(features.double().cpu().numpy()))]
    assert set(similarity) == {-1.0, 0.0, 0.5, 1.0}
    ids, got = torch.ops.fastvid.segment(features, min_segments=1, threshold=case.config.segment_threshold)
    assert got.tolist() == similarity
    segments = spec.segments(similarity, None, 1, case.config.segment_threshold)
    assert ids.tolist() == [i for i, (begin, end) in enumerate(segments) for _ in range(begin, end)]
    plan = [share for b, e in segments for share in spec.plan_segment(similarity[b:e], 16, case.config)]
    assert case.run()[2].tolist() == [salient + centers for salient, centers in plan]
    judge.check_case(case, case.run())


@pytest.mark.parametrize("min_segments", range(1, 9))
def test_equal_similarities_are_cut_from_the_first_on(device, min_segments):
    features = torch.ones(12, 4, device=device)
    features[1::2, 1:] = 0.0
    ids, similarity = torch.ops.fastvid.segment(features, min_segments=min_segments, threshold=-2.0)
    assert similarity.tolist() == [0.5] * 11 + [-1.0]
    assert ids.tolist() == [min(i, min_segments - 1) for i in range(12)]


@mode_of
@pytest.mark.parametrize("which", ["one", "all"])
def test_frame_features_zero(device, mode, which):
    case = batch(device, torch.float16, mode, features=24)
    want = case.run()
    case.frame_features[[12] if which == "one" else list(range(9, 20))] = 0.0
    check_neighbours(case.run(), want)
    judge.check_case(case, case.run())


@dtype_of
def test_mean_of_a_frame_that_cancels(device, dtype):
    """Tokens in pairs of opposite signs: without frame features, frames are compared by a mean of zero."""
    case = batch(device, dtype, "default")
    want = case.run()
    case.tokens[BAD][:, 1::2] = -case.tokens[BAD][:, ::2]
    check_neighbours(case.run(), want)
    judge.check_case(case, case.run())
