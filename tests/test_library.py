"""What was built, what is loaded, and the choice of a backend."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch
from helpers import inputs

import fastvid_ext
from fastvid_ext import __main__, _library, info


def python(code: str, **environment: str) -> subprocess.CompletedProcess:
    """Runs code in a Python of its own."""
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        cwd=Path(fastvid_ext.__file__).parent.parent,
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize(
    ("architectures", "capability", "runs"),
    [
        (("sm_90",), (9, 0), True),
        (("sm_80",), (8, 6), True),
        (("sm_86",), (8, 0), False),
        (("sm_80",), (9, 0), False),
        (("sm_80", "compute_80"), (9, 0), True),
        (("compute_90",), (8, 9), False),
        (("compute_90",), (12, 0), True),
        (("sm_90a",), (9, 0), True),
        (("sm_100a",), (10, 3), False),
        (("compute_100a",), (12, 0), False),
        (("sm_120",), (12, 1), True),
        ((), (9, 0), False),
    ],
)
def test_covers(architectures, capability, runs):
    assert _library.covers(architectures, capability) is runs


def test_status():
    status = _library.status
    assert status.version == fastvid_ext.__version__
    assert status.backend in _library.BACKENDS
    assert (status.folder / "libfastvid.so").exists()
    assert (status.cuda is None) == (status.architectures == ())
    assert status.cuda is not None or status.cuda_off


def test_info(capsys):
    assert __main__.main(["info"]) in (0, None)
    printed = capsys.readouterr().out
    assert printed.strip() == info.report()
    for fact in (fastvid_ext.__version__, torch.__version__, str(_library.status.folder), "CUDA kernels"):
        assert fact in printed
    if _library.status.cuda_off:
        assert f"off: {_library.status.cuda_off}" in printed or "reference" in printed


def test_unknown_command():
    with pytest.raises(SystemExit):
        __main__.main(["nothing"])


PRUNE = """
import torch, fastvid_ext
from fastvid_ext import _library
device = "cuda" if torch.cuda.is_available() else "cpu"
tokens = torch.randn(6, 20, 32, generator=torch.Generator().manual_seed(0)).to(device)
result = fastvid_ext.prune(tokens, tokens[..., 0])
print(_library.status.backend, _library.status.cuda_off, result.indices.tolist(), sep="|")
"""


def test_reference_backend():
    """FASTVID_BACKEND=reference computes in plain PyTorch, on CUDA tensors too."""
    ran = python(PRUNE, FASTVID_BACKEND="reference")
    assert ran.returncode == 0, ran.stderr
    backend, cuda_off, indices = ran.stdout.strip().split("|")
    assert (backend, cuda_off) == ("reference", "FASTVID_BACKEND=reference")
    tokens = inputs.gaussian(6, 20, 32)
    assert json.loads(indices) == torch.ops.fastvid.prune(tokens, tokens[..., 0])[1].tolist()


def test_unknown_backend():
    ran = python("import fastvid_ext", FASTVID_BACKEND="gpu")
    assert "FASTVID_BACKEND: got 'gpu', want one of auto, cuda, reference" in ran.stderr


@pytest.mark.skipif(_library.status.cuda_off is None, reason="CUDA is on")
def test_cuda_backend_is_refused_where_cuda_is_off():
    ran = python("import fastvid_ext", FASTVID_BACKEND="cuda")
    assert f"ImportError: FASTVID_BACKEND=cuda, but {_library.status.cuda_off}" in ran.stderr


def test_not_built(tmp_path):
    ran = python("import fastvid_ext", FASTVID_LIBRARY_DIR=str(tmp_path))
    assert f"ImportError: fastvid_ext is not built: no libraries in {tmp_path}" in ran.stderr


def test_built_from_another_version(tmp_path):
    build_info = json.loads((_library.status.folder / "build_info.json").read_text())
    (tmp_path / "build_info.json").write_text(json.dumps({**build_info, "version": "0.0.0"}))
    ran = python("import fastvid_ext", FASTVID_LIBRARY_DIR=str(tmp_path))
    assert re.search(r"ImportError: fastvid_ext is \S+, but the libraries in \S+ were built from 0.0.0", ran.stderr)


def compile_library(path: Path, code: str) -> None:
    if shutil.which("cc") is None:
        pytest.skip("no C compiler")
    subprocess.run(["cc", "-shared", "-fPIC", "-x", "c", "-", "-o", path], input=code, text=True, check=True)


def test_library_wants_more_than_this_torch_has(tmp_path):
    """As if it had been compiled for a newer torch."""
    shutil.copy(_library.status.folder / "build_info.json", tmp_path)
    future = "void torch_of_the_future(void); __attribute__((constructor)) void f(void) { torch_of_the_future(); }"
    compile_library(tmp_path / "libfastvid.so", future)
    ran = python("import fastvid_ext", FASTVID_LIBRARY_DIR=str(tmp_path))
    assert (
        f"ImportError: fastvid_ext cannot load libfastvid.so, compiled against torch {_library.status.torch}, "
        f"under torch {torch.__version__}: "
    ) in ran.stderr
    assert "undefined symbol: torch_of_the_future" in ran.stderr


def test_torch_is_too_old():
    ran = python("import torch; torch.__version__ = '2.9.1+cu128'; import fastvid_ext")
    assert "ImportError: fastvid_ext needs torch >= 2.10, got 2.9.1+cu128" in ran.stderr


@pytest.mark.parametrize(
    ("built", "driver", "fits"),
    [
        ("13.0.88", None, True),
        ("13.0.88", (13, 0), True),
        ("13.2.86", (13, 0), True),
        ("12.8.93", (13, 0), True),
        ("13.0.88", (12, 8), False),
    ],
)
def test_driver_too_old(built, driver, fits):
    message = _library._driver_too_old(built, driver)
    if fits:
        assert message is None
    else:
        assert message == (
            "the NVIDIA driver goes up to CUDA 12.8, but libfastvid_cuda.so was built with CUDA 13.0.88: "
            "update the driver, or install or build fastvid_ext for CUDA 12"
        )


def test_driver_version(tmp_path):
    driver = "int cuDriverGetVersion(int* version) { *version = 12080; return 0; }"
    compile_library(tmp_path / "libcuda.so.1", driver)
    code = "from fastvid_ext import _library; print(_library._driver_version())"
    ran = python(code, LD_LIBRARY_PATH=str(tmp_path))
    assert ran.stdout == "(12, 8)\n", ran.stderr


def test_info_names_devices_that_the_build_does_not_cover(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    devices = [types.SimpleNamespace(name="GPU", major=major, minor=0) for major in (9, 7)]
    monkeypatch.setattr(torch.cuda, "get_device_properties", devices.__getitem__)
    status = dataclasses.replace(_library.status, cuda="13.0.88", architectures=("sm_80", "sm_90", "compute_90"))
    assert info._devices(status) == [
        "0: GPU, compute capability 9.0",
        "1: GPU, compute capability 7.0, NOT COVERED by this build (sm_80 sm_90 compute_90)",
    ]


@pytest.mark.cuda
def test_device_is_not_in_the_build():
    """The op names what it was built for, and the device; the next call is none the worse for it."""
    folder = os.environ.get("FASTVID_FOREIGN_LIBRARY_DIR")
    if folder is None:
        pytest.skip("FASTVID_FOREIGN_LIBRARY_DIR names no build for another architecture (CONTRIBUTING.md)")
    code = (
        "import torch, fastvid_ext\n"
        "tokens = torch.randn(8, 20, 32, device='cuda')\n"
        "try:\n"
        "    torch.ops.fastvid.prune(tokens, tokens[..., 0])\n"
        "except RuntimeError as error:\n"
        "    print(error)\n"
        "print(tokens.isfinite().all().item())"
    )
    ran = python(code, FASTVID_LIBRARY_DIR=folder)
    built_for = " ".join(json.loads((Path(folder) / "build_info.json").read_text())["architectures"])
    major, minor = torch.cuda.get_device_capability()
    assert f"fastvid::prune: this build holds kernels for {built_for}; the device is sm_{major}{minor}" in ran.stdout
    assert ran.stdout.endswith("True\n"), ran.stderr


def test_cuda_tensors_where_cuda_is_off():
    """The message says why, and what to do."""
    kernel = _library._refusal("prune", "torch 2.13.0+cpu is not a CUDA build")
    with pytest.raises(RuntimeError, match=r"fastvid::prune got CUDA tensors, but CUDA is off: torch 2.13.0.cpu is"):
        kernel()


def test_library_refers_to_no_python():
    """So that one build serves every Python."""
    for path in _library.status.folder.glob("libfastvid*.so"):
        assert not re.search(rb"\0_?Py[A-Z_][A-Za-z_]+\0", path.read_bytes())


@pytest.mark.cuda
def test_overlap_changes_no_bit():
    """Kernels that start before their predecessors end compute what they compute one after the other."""
    code = (
        "import hashlib, torch, fastvid_ext\n"
        "torch.manual_seed(0)\n"
        "tokens = torch.randn(40, 196, 512).to('cuda', torch.bfloat16)\n"
        "saliency = torch.rand(40, 196).cuda()\n"
        "digest = hashlib.sha256()\n"
        "for _ in range(20):\n"
        "    for part in torch.ops.fastvid.prune(tokens, saliency):\n"
        "        digest.update(part.view(torch.uint8).cpu().numpy().tobytes())\n"
        "print(digest.hexdigest())"
    )
    overlapping, one_by_one = python(code, FASTVID_OVERLAP="1"), python(code, FASTVID_OVERLAP="0")
    assert overlapping.returncode == one_by_one.returncode == 0, overlapping.stderr + one_by_one.stderr
    assert overlapping.stdout == one_by_one.stdout
