"""What was built, what is loaded, and the choice of a backend."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

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
        cwd=_library.Path(fastvid_ext.__file__).parent.parent,
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
