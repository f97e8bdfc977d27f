"""python -m bench.models on toy sizes: the rows, their report and their picture."""

from __future__ import annotations

import importlib.util
import json

import pytest
import torch

pytest.importorskip("transformers", minversion="4.57")
pytest.importorskip("bench", reason="bench/ belongs to the checkout, not to the package")

from bench.models import report
from bench.models.__main__ import MODELS, main
from bench.models.build import build, prompt
from fastvid_ext.demo.report import prefill_tflops


def test_every_model(tmp_path, capsys):
    out = tmp_path / "tiny.json"
    arguments = ["--tiny", "--device", "cpu", "--batches", "2", "--out", str(out)]
    assert main([*arguments, "--ratios", "0.25"]) == 0
    rows = json.loads(out.read_text())
    assert {report.key(row) for row in rows} == {
        (model, 2, path, ratio)
        for model in MODELS
        for path, ratio in [("none", None), ("kernels", 0.25), ("reference", 0.25)]
    }
    for row in rows:
        base = next(r for r in rows if r["model"] == row["model"] and r["path"] == "none")
        assert row["vision_ms"] > 0
        assert row["prefill_ms"] > 0
        assert row["ttft_ms"] >= row["vision_ms"]
        assert row["decode_ms"] > 0
        if row["path"] != "none":
            assert 0 < row["tokens_after"] < row["tokens_before"]
            assert row["kv_bytes"] < base["kv_bytes"]
            assert row["tflops"] < base["tflops"]
    # One model again takes the place of its rows.
    assert main([*arguments, "--models", "qwen2_vl", "--ratios", "0.25"]) == 0
    assert len(json.loads(out.read_text())) == len(rows)
    assert main([*arguments, "--models", "qwen2_vl", "--seconds", "0"]) == 0
    assert "out of time before batch 2" in capsys.readouterr().out
    assert out.with_suffix(".md").read_text().count("| qwen2_vl | 2 |") == 3
    assert out.with_suffix(".png").exists() == (importlib.util.find_spec("matplotlib") is not None)


@pytest.mark.parametrize("name", ["llava_onevision", "qwen2_vl"])
def test_prompts_are_the_same_each_time(name):
    """Or the paths would not be compared on the same videos."""
    model, layout, _ = build(name, True, torch.device("cpu"))
    first, second = (prompt(model, layout, 2) for _ in range(2))
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_the_papers_tflops():
    """Qwen2-7B over the tokens of LLaVA-OneVision's video, all of them and those kept."""
    assert round(prefill_tflops(32 * 196), 2) == 48.82
    assert round(prefill_tflops(32 * 19), 2) == 4.04
