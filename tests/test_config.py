"""PruneConfig and retained_count."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from helpers import inputs

from fastvid_ext import PruneConfig, retained_count
from fastvid_ext._library import OPS

NAN = float("nan")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("retention_ratio", 0, "retention_ratio: got 0, want a value in (0, 1]"),
        ("retention_ratio", 1.01, "retention_ratio: got 1.01, want a value in (0, 1]"),
        ("retention_ratio", NAN, "retention_ratio: got nan, want a number"),
        ("min_segments", 0, "min_segments: got 0, want at least 1"),
        ("segment_threshold", NAN, "segment_threshold: got nan, want a number"),
        ("context_ratio", -0.1, "context_ratio: got -0.1, want a value in [0, 1]"),
        ("anchor_stride", 0, "anchor_stride: got 0, want at least 1"),
        ("merge_floor", 1.5, "merge_floor: got 1.5, want a value in [0, 1]"),
        ("num_neighbors", -1, "num_neighbors: got -1, want at least 1"),
        ("thin_threshold", NAN, "thin_threshold: got nan, want a number"),
    ],
)
def test_values_out_of_range(name, value, message):
    with pytest.raises(ValueError) as caught:  # noqa: PT011, the message is compared
        PruneConfig(**{name: value})
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("retention_ratio", "0.1"),
        ("retention_ratio", True),
        ("retention_ratio", None),
        ("min_segments", 8.0),
        ("min_segments", True),
        ("anchor_stride", "4"),
        ("num_neighbors", None),
        ("thin_threshold", "0.9"),
        ("spread_remainder", 1),
        ("merge_centers", None),
    ],
)
def test_values_of_another_type(name, value):
    with pytest.raises(TypeError, match=f"^{name}: got {value!r}, want a"):
        PruneConfig(**{name: value})


def test_frozen_and_hashable():
    config = PruneConfig()
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.retention_ratio = 0.5
    assert hash(config) == hash(PruneConfig())
    assert dataclasses.replace(config, retention_ratio=0.5) != config


def test_presets():
    assert PruneConfig.llava_video() == PruneConfig()
    assert PruneConfig.llava_onevision() == PruneConfig(spread_remainder=False, merge_centers=True)
    qwen = PruneConfig(segment_threshold=0.84, thin_threshold=0.95)
    assert PruneConfig.qwen2_vl() == PruneConfig.qwen2_5_vl() == qwen
    for preset in ("llava_video", "llava_onevision", "qwen2_vl", "qwen2_5_vl"):
        assert getattr(PruneConfig, preset)(retention_ratio=0.27, anchor_stride=2).retention_ratio == 0.27
    assert PruneConfig.llava_onevision(merge_centers=False) == PruneConfig(spread_remainder=False)


def test_exact_count():
    assert PruneConfig().exact_count
    assert not PruneConfig.llava_onevision().exact_count
    assert not PruneConfig.qwen2_vl().exact_count


@pytest.mark.parametrize("op", OPS)
def test_arguments_of_an_op(op):
    """All that the op takes beside its tensors and counts, and each parameter by its own value."""
    config = PruneConfig(0.25, 3, 0.7, 0.5, 2, 0.8, 5, 0.95, False, True)
    schema = getattr(torch.ops.fastvid, op).default._schema
    assert config.to_kwargs(op).keys() == {argument.name for argument in schema.arguments if argument.kwarg_only}
    values = {**dataclasses.asdict(config), "threshold": config.segment_threshold}
    assert config.to_kwargs(op).items() <= values.items()


def test_arguments_of_no_op():
    with pytest.raises(ValueError, match=r"^op: got 'merge', want one of prune, prune_padded, segment, plan"):
        PruneConfig().to_kwargs("merge")


@pytest.mark.parametrize("ratio", [0.1, 0.29, 1 / 3, 0.5, 1.0, 1e-6])
@pytest.mark.parametrize("n", [1, 10, 49, 100])
@pytest.mark.parametrize("preset", ["llava_video", "llava_onevision", "qwen2_vl"])
def test_retained_count_is_what_prune_keeps(ratio, n, preset):
    config = getattr(PruneConfig, preset)(retention_ratio=ratio)
    case = inputs.make_case(9, n, 8, cu_frames=[0, 2, 9])
    case.config = config
    kept, padded = (len(case.run(op)[1]) for op in (torch.ops.fastvid.prune, torch.ops.fastvid.prune_padded))
    assert padded == retained_count(9, n, config)
    assert kept == padded if config.exact_count else kept <= padded


def test_retained_count_checks_its_arguments():
    assert retained_count(0, 196) == 0
    assert retained_count(32, 196) == 32 * 19
    with pytest.raises(ValueError, match=r"^num_frames: got -1, want at least 0"):
        retained_count(-1, 196)
    with pytest.raises(ValueError, match=r"^tokens_per_frame: got 0, want at least 1"):
        retained_count(32, 0)
