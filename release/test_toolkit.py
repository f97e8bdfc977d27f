"""Which nvcc is taken for a CUDA version."""

from __future__ import annotations

from pathlib import Path

import pytest
import toolkit


@pytest.fixture(autouse=True)
def no_toolkit(monkeypatch, tmp_path):
    for name in ("CUDA_HOME", "CUDA_PATH", "CUDACXX"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path / "path"))


def make_nvcc(folder: Path, version: str) -> Path:
    nvcc = folder / "nvcc"
    folder.mkdir(parents=True)
    nvcc.write_text(f"#!/bin/sh\necho Cuda compilation tools, release {version}, V{version}.88\n")
    nvcc.chmod(0o755)
    return nvcc


def test_the_version_decides(monkeypatch, tmp_path):
    old = make_nvcc(tmp_path / "old" / "bin", "98.8")
    new = make_nvcc(tmp_path / "path", "99.1")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "old"))
    assert toolkit.find("98.8", tmp_path / "toolkits") == old
    assert toolkit.find("99.1", tmp_path / "toolkits") == new
    assert toolkit.installed("99.2") is None


def test_fetched_before(tmp_path):
    nvcc = make_nvcc(tmp_path / "99.0" / "nvidia" / "cu99" / "bin", "99.0")
    (nvcc.parent.parent / "lib64").mkdir()
    assert toolkit.find("99.0", tmp_path) == nvcc


def test_cuda_12_is_not_on_pypi(tmp_path):
    with pytest.raises(
        SystemExit, match=r"CUDA 12\.0: no such toolkit on this machine, and PyPI has none before 13\.0"
    ):
        toolkit.fetched("12.0", tmp_path)


def test_no_version(tmp_path):
    with pytest.raises(SystemExit, match=r"CUDA version: got '13', want such as 13\.0"):
        toolkit.find("13", tmp_path)
