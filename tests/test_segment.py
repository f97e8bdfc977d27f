"""segment: where videos are cut."""

from __future__ import annotations

import pytest
import torch
from helpers import inputs, judge, spec

segment = torch.ops.fastvid.segment


@pytest.mark.parametrize("cu_frames", [None, [0, 0, 4, 4, 11, 12, 12], [0, 1, 12]], ids=str)
@pytest.mark.parametrize("min_segments", [1, 2, 5, 100])
@pytest.mark.parametrize("threshold", [0.9, 0.5, -2.0, 2.0])
def test_equals_the_plain_loops(cu_frames, min_segments, threshold):
    features = inputs.video(12, 1, 7, seed=3).squeeze(1).double()
    bounds = None if cu_frames is None else torch.tensor(cu_frames)
    ids, similarity = segment(features, bounds, min_segments=min_segments, threshold=threshold)
    want = spec.similarities(features.numpy(), cu_frames)
    torch.testing.assert_close(similarity, torch.tensor(want, dtype=torch.float64))
    found = spec.segments(want, cu_frames, min_segments, threshold)
    assert ids.tolist() == [i for i, (begin, end) in enumerate(found) for _ in range(begin, end)]


@pytest.mark.parametrize(
    ("frames", "channels", "cu_frames"),
    [
        (1, 1, None),
        (2, 3, None),
        (3, 1200, [0, 1, 1, 3]),
        (64, 33, [0, 30, 64]),
        (600, 4096, [0, 5, 5, 590, 600]),
        (1025, 8191, None),
        (4096, 16, [0, 4000, 4096]),
    ],
)
@pytest.mark.parametrize("dtype", inputs.DTYPES, ids=str)
def test_against_float64(device, dtype, frames, channels, cu_frames):
    features = inputs.video(frames, 1, channels, seed=frames).squeeze(1).to(device, dtype)
    for kind in (torch.int32, torch.int64):
        bounds = None if cu_frames is None else torch.tensor(cu_frames, dtype=kind)
        for place in {"cpu", device}:
            there = None if bounds is None else bounds.to(place)
            result = segment(features, there, min_segments=6, threshold=0.85)
            judge.check_segment(features, cu_frames, 6, 0.85, result)


@pytest.mark.parametrize("dtype", inputs.DTYPES, ids=str)
def test_strided_features(device, dtype):
    features = inputs.gaussian(20, 37, device=device, dtype=dtype)
    want = segment(features)
    transposed = features.T.contiguous().T
    spaced = inputs.laid_out(features[None], "strided_channels")[0]
    offset = inputs.laid_out(features[None], "offset")[0]
    for layout in (transposed, spaced, offset):
        got = segment(layout)
        assert torch.equal(got[0], want[0])
        torch.testing.assert_close(got[1], want[1], rtol=0, atol=1e-6)


def test_ties_go_to_the_earlier_frame(device):
    turned = torch.eye(2, device=device)[torch.tensor([0, 1, 0, 1, 0, 1, 1, 1], device=device)]
    assert segment(turned, min_segments=3, threshold=-2.0)[0].tolist() == [0, 1, 2, 2, 2, 2, 2, 2]
    assert segment(turned, min_segments=8, threshold=-2.0)[0].tolist() == list(range(8))
    assert segment(turned, min_segments=1, threshold=0.0)[0].tolist() == [0] * 8
    assert segment(turned, min_segments=1, threshold=0.5)[0].tolist() == [0, 1, 2, 3, 4, 5, 5, 5]


def test_threshold_is_strict(device):
    """A similarity of exactly 0.5 is not below 0.5, as it is below the next float."""
    features = torch.tensor([[1.0, 1.0, 1.0, 1.0], [1.0, 1.0, 1.0, -1.0]], device=device)
    assert segment(features, min_segments=1, threshold=0.5)[1][0] == 0.5
    assert segment(features, min_segments=1, threshold=0.5)[0].tolist() == [0, 0]
    assert segment(features, min_segments=1, threshold=0.5000001)[0].tolist() == [0, 1]


def test_zero_features(device):
    features = torch.zeros(4, 8, device=device)
    features[3] = 1
    ids, similarity = segment(features, min_segments=1, threshold=0.1)
    assert similarity.tolist() == [0.0, 0.0, 0.0, -1.0]
    assert ids.tolist() == [0, 1, 2, 3]


def test_no_frames(device):
    ids, similarity = segment(torch.empty(0, 8, device=device))
    assert ids.shape == similarity.shape == (0,)
    assert segment(torch.empty(0, 8, device=device), torch.tensor([0, 0, 0]))[0].shape == (0,)
