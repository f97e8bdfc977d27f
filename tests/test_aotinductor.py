"""A package of AOTInductor that calls the op; in a process of its own, since what goes wrong there may end it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import fastvid_ext

PROGRAM = """
import sys
import torch
import fastvid_ext

def done(step):
    print(step, flush=True)

class Pruner(torch.nn.Module):
    def forward(self, tokens, saliency):
        kept, indices, _ = torch.ops.fastvid.prune(tokens * 2, saliency, retention_ratio=0.2)
        return kept + 1, indices

def video(seed):
    torch.manual_seed(seed)
    return torch.randn(16, 49, 64, device=sys.argv[1]), torch.rand(16, 49, device=sys.argv[1])

program = torch.export.export(Pruner(), video(0))
done("exported")
path = torch._inductor.aoti_compile_and_package(program, package_path=sys.argv[2])
done("packaged")
package = torch._inductor.aoti_load_package(path)
done("loaded")
for seed in range(2):
    rows, indices = package(*video(seed))
    torch.cuda.synchronize() if rows.is_cuda else None
    done(f"ran {seed}")
    want_rows, want_indices = Pruner()(*video(seed))
    assert torch.equal(indices, want_indices)
    torch.testing.assert_close(rows, want_rows)
"""


# The same of a model of torch's own ops alone.
PLAIN = PROGRAM.replace("import fastvid_ext\n", "").replace(
    """        kept, indices, _ = torch.ops.fastvid.prune(tokens * 2, saliency, retention_ratio=0.2)
        return kept + 1, indices
""",
    "        return tokens * 2 + saliency[..., None], saliency\n",
)


def run(program: str, device: torch.device, folder: Path) -> subprocess.CompletedProcess[str]:
    package = Path(fastvid_ext.__file__).parent.parent
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(package), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-X", "faulthandler", "-c", program, str(device), str(folder / "model.pt2")]
    return subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True)


def test_package(device, tmp_path):
    done = run(PROGRAM, device, tmp_path)
    if done.returncode < 0 and run(PLAIN, device, tmp_path).returncode < 0:
        pytest.skip("torch crashes here with any AOTInductor package, also one without fastvid_ext")
    steps = ", ".join(done.stdout.split("\n")[:-1]) or "nothing"
    assert done.returncode == 0, f"exit status {done.returncode} behind: {steps}\n{done.stderr[-3000:]}"
