"""Every shape, parameter and layout, against float64; and as many elements as no int holds."""

from __future__ import annotations

import pytest
import torch
from helpers import inputs, judge, strategies
from hypothesis import example, given, settings

from fastvid_ext import PruneConfig

ops = torch.ops.fastvid
F32 = torch.float32
FAR = strategies.NEVER_MET
# A stride past every int, where no anchor frame, or only the last one, has a centre.
NO_CENTERS = strategies.Drawn(40, 20, 32, F32, PruneConfig(context_ratio=0.0, anchor_stride=2**31 - 1))
THINNED = strategies.Drawn(40, 20, 32, F32, PruneConfig(thin_threshold=0.5, anchor_stride=FAR, segment_threshold=-2.0))
ONE_TOKEN = strategies.Drawn(7, 1, 1, torch.bfloat16, PruneConfig(retention_ratio=1e-9), cu_frames=(0, 0, 7, 7))


def check(drawn: strategies.Drawn, device: str) -> None:
    case = drawn.case(device)
    result = case.run()
    judge.check_case(case, result)
    padded = case.run(ops.prune_padded)
    kept = len(result[1])
    assert judge.same_bits(padded[0][:kept], result[0])
    assert torch.equal(padded[1][:kept], result[1])
    assert torch.equal(padded[2], result[2])
    assert (padded[0][kept:] == 0).all()
    assert (padded[1][kept:] == -1).all()


@example(NO_CENTERS)
@example(THINNED)
@example(ONE_TOKEN)
@settings(max_examples=100)
@given(strategies.videos(elements=30_000, pairs=300_000))
def test_any_video(drawn):
    check(drawn, "cpu")


@example(NO_CENTERS)
@example(THINNED)
@example(ONE_TOKEN)
@pytest.mark.cuda
@settings(max_examples=200)
@given(strategies.videos(elements=3_000_000, pairs=20_000_000))
def test_any_video_on_cuda(drawn):
    check(drawn, "cuda")


@pytest.mark.parametrize("count", [0, 1])
def test_no_frames_and_no_choice(device, count):
    """No frame, or one with one token of one channel, in every op."""
    tokens, flat = torch.ones(count, 1, 1, device=device), torch.ones(count, 1, device=device)
    for op, kept in ((ops.prune, count), (ops.prune_padded, count)):
        rows, indices, frame_counts = op(tokens, flat)
        assert rows.tolist() == [[1.0]] * kept
        assert indices.tolist() == [0] * kept
        assert frame_counts.tolist() == [1] * kept
    ids, similarity = ops.segment(flat)
    assert (ids.tolist(), similarity.tolist()) == ([0] * count, [-1.0] * count)
    num_salient, num_context = ops.plan(ids, similarity, 1)
    assert (num_salient.tolist(), num_context.tolist()) == ([1] * count, [0] * count)
    density = ops.knn_density(tokens)
    assert density.tolist() == [[1.0]] * count
    centers, score = ops.select_peaks(tokens, density, 1)
    assert (centers.tolist(), score.tolist()) == ([[0]] * count, [[0.0]] * count)
    merged, assignment, counts = ops.scatter_merge(tokens, centers)
    assert merged.tolist() == [[[1.0]]] * count
    assert (assignment.tolist(), counts.tolist()) == ([[-1]] * count, [[0]] * count)


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", inputs.DTYPES, ids=str)
@pytest.mark.parametrize("config", [{}, {"thin_threshold": 0.95}, {"retention_ratio": 0.6, "merge_centers": True}])
def test_as_many_tokens_a_frame_as_there_may_be(dtype, config):
    config = {"retention_ratio": 0.02, "min_segments": 2, "num_neighbors": 40, **config}
    case = inputs.make_case(4, 4096, 48, device="cuda", dtype=dtype, **config)
    assert judge.check_case(case, case.run()) <= 3


SCENE = 16  # frames


@pytest.mark.cuda
@pytest.mark.parametrize("packed", [False, True], ids=["as_it_stands", "packed_first"])
def test_more_elements_than_an_int_holds(packed):
    """4096 x 196 x 3584. The frame features cut for sure, so that every segment can be judged alone."""
    frames, n, channels = 4096, 196, 3584
    assert frames * n * channels > 2**31
    generator = torch.Generator("cuda").manual_seed(5)
    width = channels + (1 if packed else 0)  # rows at an odd place are copied before they are read
    tokens = torch.empty(frames, n, width, dtype=torch.bfloat16, device="cuda")[..., width - channels :]
    for begin in range(0, frames, SCENE):
        scene = torch.randn(n, channels, generator=generator, device="cuda")
        noise = torch.randn(SCENE, n, channels, generator=generator, device="cuda")
        tokens[begin : begin + SCENE] = scene + 0.3 * noise
    saliency = torch.rand(frames, n, generator=generator, device="cuda")
    features = torch.eye(SCENE, device="cuda")[torch.arange(frames, device="cuda") // SCENE % SCENE]
    config = PruneConfig(min_segments=1)
    rows, indices, frame_counts = ops.prune(tokens, saliency, features, **config.to_kwargs())

    budget = SCENE * int(n * config.retention_ratio)  # rows of a segment
    assert len(rows) == frames // SCENE * budget
    assert (indices[1:] > indices[:-1]).all()
    kept = torch.bincount(indices // n, minlength=frames)
    assert torch.equal(kept.int(), frame_counts)
    assert (kept.view(-1, SCENE).sum(1) == budget).all()
    across_int = 2**31 // (n * channels) // SCENE  # the segment with element 2^31
    segments = frames // SCENE
    for segment in {0, 1, across_int - 1, across_int, across_int + 1, segments - 1, *range(7, segments, 29)}:
        begin, first = segment * SCENE, segment * budget
        own = slice(begin, begin + SCENE)
        result = rows[first : first + budget], indices[first : first + budget] - begin * n, frame_counts[own]
        judge.check_prune(tokens[own], saliency[own], features[own], None, config, result)


@pytest.mark.cuda
def test_many_short_videos():
    """Thousands of boundaries on the host go to the device as kernel arguments, some at a time."""
    bounds = sorted({*range(0, 3000, 2), *range(0, 3000, 7), 3000})
    case = inputs.make_case(3000, 4, 16, device="cuda", cu_frames=bounds, retention_ratio=0.5)
    host = case.run()
    judge.check_case(case, host)
    case.cu_frames = case.cu_frames.cuda()
    assert all(map(judge.same_bits, case.run(), host))
