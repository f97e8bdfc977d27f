"""The judge of float results accepts what rounding may decide and nothing else."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from helpers import inputs, judge


def make(dtype=torch.float32, **config) -> inputs.Case:
    config = {"retention_ratio": 0.25, "context_ratio": 0.45, "min_segments": 3, **config}
    return inputs.make_case(16, 40, 64, seed=4, dtype=dtype, cu_frames=[0, 6, 16], **config)


def verdict(case: inputs.Case, result) -> int:
    args, _ = case.arguments()
    return judge.check_prune(*args, case.config, result)


@pytest.mark.parametrize("dtype", [torch.float64, *inputs.DTYPES], ids=str)
def test_right_results_pass(dtype):
    case = make(dtype)
    assert verdict(case, case.run()) == 0


@pytest.mark.parametrize("dtype", inputs.DTYPES, ids=str)
@pytest.mark.parametrize(
    "change",
    [
        {"num_neighbors": 5},
        {"merge_floor": 0.61},
        {"anchor_stride": 3},
        {"context_ratio": 0.5},
        {"segment_threshold": 0.95},
        {"min_segments": 4},
        {"merge_centers": True},
        {"spread_remainder": False},
        {"retention_ratio": 0.28},
        {"thin_threshold": 0.95},
    ],
    ids=str,
)
def test_other_parameters_are_caught(change, dtype):
    case = make(dtype)
    other = dataclasses.replace(case, config=dataclasses.replace(case.config, **change))
    with pytest.raises(AssertionError):
        verdict(case, other.run())


def kinds_of_rows(case, result):
    """Places of a salient row and of a merged one in the result."""
    rows, indices, _ = result
    salient = (rows == case.tokens.flatten(0, 1)[indices]).all(1)
    return salient.nonzero()[0].item(), (~salient).nonzero()[0].item()


@pytest.mark.parametrize("dtype", inputs.DTYPES, ids=str)
def test_changed_values_are_caught(dtype):
    case = make(dtype)
    result = case.run()
    for place in kinds_of_rows(case, result):
        rows = result[0].clone()
        rows[place, 7] *= 1 + max(4 * torch.finfo(dtype).eps, 1e-3)
        with pytest.raises(AssertionError, match=r"salient row|not the merge"):
            verdict(case, (rows, *result[1:]))
        rows = result[0].clone()
        rows[[place, place + 1]] = rows[[place + 1, place]]
        with pytest.raises(AssertionError):
            verdict(case, (rows, *result[1:]))


def test_other_indices_are_caught():
    case = make()
    rows, indices, frame_counts = case.run()
    free = [i for i in range(40) if i not in indices]
    for place in kinds_of_rows(case, (rows, indices, frame_counts)):
        for token in free:
            changed = indices.clone()
            changed[place] = token
            order = changed.argsort()
            with pytest.raises(AssertionError):
                verdict(case, (rows[order], changed[order], frame_counts))


@pytest.mark.parametrize("dtype", inputs.DTYPES, ids=str)
def test_a_merge_of_other_tokens_is_caught(dtype):
    """One token less, or one that went to another centre than the most similar."""
    x = inputs.gaussian(60, 48, dtype=dtype)
    centers, mergeable = torch.tensor([3, 20, 41]), torch.ones(60, dtype=torch.bool)
    merged, assignment, _ = torch.ops.fastvid.scatter_merge(x[None], centers[None])
    assert judge.check_merge(x, centers, mergeable, merged[0], 0.6) == 0
    victim = int((assignment[0] == 1).nonzero()[0])
    without = mergeable.clone()
    without[victim] = False
    fewer, _, _ = torch.ops.fastvid.scatter_merge(x[None], centers[None], without[None])
    with pytest.raises(AssertionError, match="not the merge"):
        judge.check_merge(x, centers, mergeable, fewer[0], 0.6)
    moved = judge.cosines(x, x[centers])
    moved[victim, 2] = 2.0
    with pytest.raises(AssertionError, match="not the merge"):
        judge.check_merge(x, centers, mergeable, merged[0], 0.6, cosine=moved)


def test_a_token_between_two_centres_may_go_to_either():
    x = inputs.gaussian(30, 32)
    centers, mergeable = torch.tensor([2, 9]), torch.ones(30, dtype=torch.bool)
    unit = x[centers] / x[centers].norm(dim=1, keepdim=True)
    towards = unit[0] - unit[1]
    for lean, doubts in ((3e-7, 1), (-3e-7, 1), (1e-2, None)):
        x[20] = unit.sum(0) + lean * towards
        right = torch.ops.fastvid.scatter_merge(x[None].double(), centers[None])[0][0]
        cosine = judge.cosines(x, x[centers])
        cosine[20] = cosine[20].flip(0)
        flipped = x[None].double()
        flipped[0, 20] = unit.sum(0) - lean * towards
        other = torch.ops.fastvid.scatter_merge(flipped, centers[None])[0][0].float()
        assert judge.check_merge(x, centers, mergeable, right.float(), 0.6) == 0
        if doubts:
            assert judge.check_merge(x, centers, mergeable, other, 0.6) == doubts
        else:
            with pytest.raises(AssertionError, match="not the merge"):
                judge.check_merge(x, centers, mergeable, other, 0.6)


@pytest.mark.parametrize(("distance", "passes"), [(3e-6, True), (3e-5, False)])
@pytest.mark.parametrize("parameter", ["segment_threshold", "thin_threshold"])
def test_a_similarity_at_the_threshold_may_fall_either_way(parameter, distance, passes):
    case = make()
    if parameter == "thin_threshold":
        case.config = dataclasses.replace(case.config, segment_threshold=0.5)
    similarity = judge.cosine_to_next(case.frame_features.double(), case.cu_frames)[3]
    below, above = (
        dataclasses.replace(case, config=dataclasses.replace(case.config, **{parameter: similarity + step}))
        for step in (-distance, distance)
    )
    assert not torch.equal(below.run()[2], above.run()[2])
    for case, other in ((below, above), (above, below)):
        assert verdict(case, case.run()) == 0
        if passes:
            assert verdict(case, other.run()) == 1
        else:
            with pytest.raises(AssertionError):
                verdict(case, other.run())


def test_the_least_similar_may_change_places():
    """Frames 2 and 7 are cut after or not: only one of them is among the c-1 least similar."""
    for gap, passes in ((2e-6, True), (1e-3, False)):
        similarity = [0.9, 0.9, 0.5, 0.9, 0.9, 0.9, 0.9, 0.5 + gap, 0.9, -1.0]
        config = inputs.PruneConfig(min_segments=2, segment_threshold=0.1)
        ways = judge.possible_similarities(similarity, similarity, None, config)
        cuts = [tuple(end for _, end in segments) for _, segments, _ in ways]
        assert cuts == ([(3, 10), (8, 10)] if passes else [(3, 10)])


def test_of_too_many_ties_only_the_way_of_float32_is_tried():
    """A threshold that float32 takes for 0, among similarities of 0: thinned in float64, not in float32."""
    similarity = [0.0] * 20 + [-1.0]
    config = inputs.PruneConfig(min_segments=1, segment_threshold=-0.5, thin_threshold=1e-320)
    ways = judge.possible_similarities(similarity, similarity, None, config)
    assert next(ways) == (0, [(0, 21)], similarity)
    assert next(ways) == (20, [(0, 21)], [2.0] * 20 + [-1.0])
    with pytest.raises(judge.TooManyTiesError):
        next(ways)


def test_near_gammas_may_change_places():
    x = inputs.gaussian(50, 64).double()
    density = torch.ops.fastvid.knn_density(x[None])
    centers, score = torch.ops.fastvid.select_peaks(x[None], density, 6)
    chosen = torch.zeros(50, dtype=torch.bool)
    chosen[centers[0]] = True
    assert judge.check_peaks(x, chosen, 4) == 0
    order = (-score[0]).argsort()
    worse = chosen.clone()
    worse[order[5]], worse[order[6]] = False, True
    with pytest.raises(AssertionError, match="was chosen before"):
        judge.check_peaks(x, worse, 4)
