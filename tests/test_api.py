"""fastvid_ext.prune and PruneResult."""

from __future__ import annotations

import pytest
import torch
from helpers import inputs, judge

import fastvid_ext
from fastvid_ext import PruneConfig, prune

CONFIGS = [PruneConfig(), PruneConfig.llava_onevision(), PruneConfig.qwen2_5_vl(retention_ratio=0.27)]
any_config = pytest.mark.parametrize("config", CONFIGS, ids=["video", "onevision", "qwen"])


def fields(result):
    return result.tokens, result.indices, result.frame_counts


@any_config
@pytest.mark.parametrize("cu_frames", [None, [0, 5, 5, 14]], ids=str)
def test_is_the_op(device, config, cu_frames):
    case = inputs.make_case(14, 30, 16, device=device, cu_frames=cu_frames)
    case.config = config
    args, _ = case.arguments()
    result = prune(*args, config)
    assert all(map(judge.same_bits, fields(result), case.run()))
    assert result.cu_frames.tolist() == (cu_frames or [0, 14])


@any_config
@pytest.mark.parametrize("features", [None, 12])
def test_batch_of_videos(device, config, features):
    """(B, F, N, D) is B videos of F frames, packed."""
    case = inputs.make_case(15, 30, 16, device=device, features=features, cu_frames=[0, 5, 10, 15])
    case.config = config
    frame_features = None if features is None else case.frame_features.view(3, 5, features)
    result = prune(case.tokens.view(3, 5, 30, 16), case.saliency.view(3, 5, 30), frame_features, config=config)
    assert all(map(judge.same_bits, fields(result), case.run()))
    assert result.cu_frames.tolist() == [0, 5, 10, 15]


@any_config
def test_unpack(device, config):
    case = inputs.make_case(14, 30, 16, device=device, cu_frames=[0, 5, 5, 14])
    result = prune(case.tokens, case.saliency, case.frame_features, case.cu_frames, config)
    videos = result.unpack()
    assert len(videos) == 3
    assert len(videos[1][0]) == len(videos[1][1]) == 0
    ends = result.cu_tokens()
    assert ends.dtype == torch.int64
    assert ends.device == result.tokens.device
    assert ends.tolist() == [0, len(videos[0][0]), len(videos[0][0]), len(result.tokens)]
    for (rows, indices), begin, first in zip(videos, ends.tolist(), [0, 5, 5]):
        assert torch.equal(rows, result.tokens[begin : begin + len(rows)])
        assert torch.equal(indices + first * 30, result.indices[begin : begin + len(rows)])
    alone = prune(case.tokens[5:], case.saliency[5:], case.frame_features[5:], config=config)
    assert torch.equal(videos[2][1], alone.indices)


@pytest.mark.parametrize("shape", [(0, 5, 30, 16), (3, 0, 30, 16), (1, 1, 1, 1)], ids=str)
def test_small_batches(device, shape):
    tokens = torch.ones(shape, device=device)
    result = prune(tokens, tokens[..., 0])
    kept = shape[0] * shape[1] * fastvid_ext.retained_count(1, shape[2])
    assert result.tokens.shape == (kept, shape[3])
    assert len(result.unpack()) == max(shape[0], 1)
    assert result.cu_tokens()[-1] == kept


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"cu_frames": torch.tensor([0, 6])}, "cu_frames: got boundaries with tokens of shape .B, F, N, D., want None"),
        ({"saliency": torch.ones(6, 4)}, r"saliency: got shape \(6, 4\), want \(B, F, ...\) = \(2, 3, any\)"),
        ({"frame_features": torch.ones(2, 4, 5)}, r"frame_features: got shape \(2, 4, 5\), want .* = \(2, 3, any\)"),
    ],
)
def test_batches_that_do_not_fit(changed, message):
    arguments = {"tokens": torch.ones(2, 3, 4, 5), "saliency": torch.ones(2, 3, 4), **changed}
    with pytest.raises(ValueError, match=f"^{message}"):
        prune(**arguments)


@pytest.mark.cuda
def test_cu_tokens_does_not_sync():
    case = inputs.make_case(14, 30, 16, device="cuda", cu_frames=[0, 5, 14])
    result = prune(case.tokens, case.saliency, cu_frames=case.cu_frames.cuda())
    torch.cuda.set_sync_debug_mode("error")
    try:
        ends = result.cu_tokens()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert ends.tolist() == [0, 15, 42]


def test_public_names():
    for name in fastvid_ext.__all__:
        assert hasattr(fastvid_ext, name)
        assert name == "__version__" or getattr(fastvid_ext, name).__doc__
