"""csrc/core, compiled for the host: what decides in the kernels, against the reference and the plain loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from helpers import spec
from hypothesis import example, given
from hypothesis import strategies as st

from fastvid_ext import PruneConfig, reference

core = pytest.importorskip("fastvid_core", reason="fastvid_core is not built (FASTVID_BUILD_TESTS=1)")

SPECIAL = [0.0, -0.0, math.inf, -math.inf, math.nan, 1.0, -1.0, 1e-45, -1e-45, 1e-38, 3.4e38, -3.4e38]
floats = st.one_of(st.sampled_from(SPECIAL), st.floats(width=32), st.floats(-1, 1, width=32))
ratios = st.one_of(st.sampled_from([0.0, 0.1, 0.29, 0.4, 0.5, 1 / 3, 0.999, 1.0]), st.floats(0, 1))
positive_ratios = ratios.filter(lambda r: r > 0)
counts = st.one_of(st.integers(1, 12), st.integers(1, 1100))
lengths = st.one_of(st.integers(1, 12), st.integers(1, 700))
strides = st.one_of(st.integers(1, 12), st.sampled_from([100, 2**31 - 1]))


# ---- order.h -------------------------------------------------------------------------------------------------------


@given(st.lists(floats, min_size=1, max_size=30))
def test_order_is_that_of_the_reference(values):
    """Larger first, NaN last, ties (as of 0 and -0) by the lower index: an order by which ranks are a permutation."""
    x, index = np.array(values, np.float32), np.arange(len(values), dtype=np.int32)
    before = core.ranks_before(x[:, None], index[:, None], x[None], index[None])
    rank = before.sum(0)
    assert sorted(rank) == list(index)
    assert rank.tolist() == reference._descending_rank(torch.from_numpy(x)[None])[0].tolist()
    for count in (0, 1, len(values) // 2, len(values)):
        assert [i for i in index if rank[i] < count] == spec.top(values, count)


@given(st.one_of(st.sampled_from(SPECIAL), st.floats()), st.one_of(st.sampled_from(SPECIAL), st.floats()))
def test_double_keys_order_as_the_values(a, b):
    key_a, key_b = int(core.order_key_double(a)), int(core.order_key_double(b))
    if math.isnan(a) or math.isnan(b):
        assert (key_a < key_b) == (math.isnan(a) and not math.isnan(b))
    else:
        assert (key_a < key_b, key_a == key_b) == (a < b, a == b)


@given(floats, floats)
def test_keys_order_as_the_values(a, b):
    a, b = np.float32(a), np.float32(b)
    key_a, key_b = int(core.order_key(a)), int(core.order_key(b))
    if np.isnan(a) or np.isnan(b):
        assert (key_a < key_b) == bool(np.isnan(a) and not np.isnan(b))
    else:
        assert (key_a < key_b, key_a == key_b) == (a < b, a == b)


@given(floats)
def test_candidates_rank_above_what_is_none(value):
    key = int(core.candidate_key(value))
    assert key > -(2**31)
    assert key == max(int(core.order_key(value)), -(2**31) + 1)
    assert int(core.candidate_key_double(value)) == max(int(core.order_key_double(value)), -(2**63) + 1)


# ---- segment.h -----------------------------------------------------------------------------------------------------


@given(
    st.lists(st.one_of(st.sampled_from([0.5, 0.9, 1.0, -1.0, 0.0, -0.0]), st.floats(-1, 1, width=32)), max_size=30),
    st.integers(1, 12),
    st.one_of(st.sampled_from([-2.0, 0.0, 0.5, 0.9, 2.0]), st.floats(-1, 1, width=32)),
)
def test_cuts(similarity, min_segments, threshold):
    threshold = float(np.float32(threshold))
    values = np.array(similarity, np.float32).astype(float).tolist()
    segments = spec.segments([*values, -1.0], None, min_segments, threshold)
    want = [end - 1 for _, end in segments[:-1]]
    found = core.cuts(similarity, threshold, min_segments)
    assert [i for i, cut in enumerate(found) if cut] == want
    assert len(segments) >= min(min_segments, len(similarity) + 1)


def test_a_similarity_that_is_no_number_is_cut_last():
    """As the reference sorts it; and it is below no threshold."""
    assert core.cuts([math.nan, 0.9, 0.8], 0.0, 3) == [False, True, True]
    assert core.cuts([math.nan, 0.9], 2.0, 1) == [False, True]
    assert core.cuts([math.nan, math.nan], 0.0, 2) == [True, False]


@given(st.lists(st.floats(-100, 100, width=32), min_size=4, max_size=4))
def test_cosine(values):
    x, y = np.array(values[:2], np.float32), np.array(values[2:], np.float32)
    got = float(core.cosine((x * y).sum(), (x * x).sum(), (y * y).sum()))
    if min((x * x).sum(), (y * y).sum()) > 1e-20:
        assert got == pytest.approx(spec.cosine(x.astype(float), y.astype(float)), abs=1e-5)
    assert core.cosine(0.0, 0.0, 0.0) == 0.0


@given(st.floats(2.0**-60, 2.0**99, width=32))
def test_inverse_norm(squared):
    assert float(core.inverse_norm(squared)) == pytest.approx(squared**-0.5, rel=1e-6)
    assert core.inverse_norm(0.0) == np.float32(1) / np.float32(1e-12)


# ---- plan.h --------------------------------------------------------------------------------------------------------


@given(positive_ratios, counts)
@example(0.29, 100)  # 28.999999999999996
@example(0.1, 9)
def test_frame_budget(ratio, n):
    assert core.frame_budget(core.BudgetParams(n, ratio)) == max(1, int(n * ratio)) == spec.frame_budget(n, ratio)


@given(lengths, st.integers(0, 5000), st.integers(0, 300), strides)
def test_effective_stride(length, centers, most_centers, stride):
    found = core.effective_stride(length, centers, most_centers, stride)
    wanted = spec.effective_stride(length, centers, most_centers, stride)
    assert found == reference._effective_stride(length, centers, most_centers, stride) == wanted


@given(st.integers(0, 10**6), st.integers(1, 1000))
def test_spread(total, parts):
    shares = core.spread(total, parts, np.arange(parts, dtype=np.int32))
    assert shares.tolist() == spec.spread(total, parts) == reference._spread(total, parts)
    assert shares.sum() == total
    assert shares.max() - shares.min() <= 1


@given(lengths, counts, positive_ratios, ratios, strides, st.sampled_from(["spread", "drop", "thin"]), st.data())
def test_plan(length, n, ratio, context_ratio, stride, mode, data):
    similarity = [1.0] * length
    if mode == "thin":
        similarity = data.draw(st.lists(st.sampled_from([0.1, 0.9]), min_size=length, max_size=length))
    thin_threshold, spread_remainder = (0.5 if mode == "thin" else None), mode != "drop"
    budget = {
        "retention_ratio": ratio,
        "context_ratio": context_ratio,
        "anchor_stride": stride,
        "thin_threshold": thin_threshold,
        "spread_remainder": spread_remainder,
    }
    params = core.BudgetParams(n, ratio, context_ratio, stride, thin_threshold, spread_remainder)
    holders = [i for i, s in enumerate(similarity) if i == length - 1 or mode != "thin" or s < 0.5]
    plan = [core.thinned_share(params, length, len(holders))] * length
    for i, share in zip(holders, core.plan_segment(params, length, len(holders))):
        plan[i] = share
    assert plan == [tuple(share) for share in spec.plan_segment(similarity, n, PruneConfig(**budget))]
    ids = torch.zeros(length, dtype=torch.int32)
    num_salient, num_context = reference.plan(ids, torch.tensor(similarity), n, **budget)
    assert plan == list(zip(num_salient.tolist(), num_context.tolist()))

    kept = [salient + context for salient, context in plan]
    budget_of_all = core.frame_budget(params) * length
    assert min(min(share) for share in plan) >= 0
    assert max(kept) <= n
    assert sum(kept) == budget_of_all if mode == "spread" else sum(kept) <= budget_of_all
    anchors = [i for i, (_, context) in enumerate(plan) if context]
    assert len(anchors) <= core.max_anchors(params, length)


@given(st.integers(1, 64), counts, positive_ratios, ratios, strides, st.sampled_from(["spread", "drop", "thin"]))
def test_shorter_segments_have_no_more_anchor_frames(frames, n, ratio, context_ratio, stride, mode):
    """max_anchors sizes the workspace from the frames of the whole batch, before the segments are known."""
    thin_threshold = 0.5 if mode == "thin" else None
    params = core.BudgetParams(n, ratio, context_ratio, stride, thin_threshold, mode != "drop")
    most = core.max_anchors(params, frames)
    assert most <= frames
    for length in range(1, frames + 1):
        for holders in {length, (length + 1) // 2, 1} if mode == "thin" else {length}:
            shares = core.plan_segment(params, length, holders)
            assert sum(context > 0 for _, context in shares) <= most


# ---- knn_density.h, select_peaks.h, scatter_merge.h ----------------------------------------------------------------


@given(st.floats(0, 2.0**99, width=32), st.floats(0, 2.0**99, width=32), st.floats(-(2.0**99), 2.0**99, width=32))
def test_squared_distance(squared_x, squared_y, product):
    got = core.squared_distance(squared_x, squared_y, product)
    assert got >= 0
    exact = max(squared_x + squared_y - 2 * product, 0.0)
    assert float(got) == pytest.approx(exact, rel=1e-5, abs=1e-6 * (squared_x + squared_y + abs(product)))


def test_values_that_are_no_numbers_stay_so():
    assert np.isnan(core.squared_distance(math.nan, 1.0, 0.0))
    assert np.isnan(core.squared_distance(math.inf, 1.0, math.inf))
    assert np.isnan(core.density(math.nan, 4))
    assert np.isnan(core.cosine(math.nan, 1.0, 1.0))


@given(st.floats(0, 80, width=32), st.integers(1, 1000))
def test_density(total, neighbors):
    assert float(core.density(total, neighbors)) == pytest.approx(math.exp(-total / neighbors), rel=1e-5)


@given(st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0, math.inf]), min_size=1, max_size=12))
def test_of_two_tokens_one_is_denser(values):
    rho, index = np.array(values, np.float32), np.arange(len(values), dtype=np.int32)
    denser = core.denser(rho[None], index[None], rho[:, None], index[:, None])
    assert (denser ^ denser.T ^ np.eye(len(values), dtype=bool)).all()
    assert sorted(denser.sum(1)) == list(index)
    assert denser.sum(1).tolist() == [sorted(index, key=lambda i: (-rho[i], i)).index(i) for i in index]


@given(st.floats(0, 1, width=32), st.floats(0, 1e6, width=32))
def test_peak_score(rho, squared):
    assert float(core.peak_score(rho, squared)) == pytest.approx(rho * math.sqrt(squared), rel=1e-6, abs=1e-37)


@given(st.integers(0, 10**6), ratios)
def test_own_weight(count, floor):
    assert float(core.own_weight(count, floor)) == pytest.approx(max(1 / (count + 1), floor), rel=1e-6, abs=1e-37)


@given(st.floats(-100, 100, width=32), st.floats(-1e4, 1e4, width=32), st.integers(0, 1000), ratios)
def test_merged_value(center, total, count, floor):
    weight = float(core.own_weight(count, floor))
    got = float(core.merged_value(center, total, count, floor))
    if count == 0:
        assert got == center
    else:
        assert got == pytest.approx(weight * center + (1 - weight) * total / count, rel=1e-4, abs=1e-3)
