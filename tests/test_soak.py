"""A moment of each part of tests/soak.py; tests/harden.sh runs them for long."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.cuda
@pytest.mark.parametrize("part", ["threads", "graphs", "memory", "second-gpu", "workers", "digest"])
def test_part(part):
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, ROOT / "tests" / "soak.py", part, "--seconds", "3", "--calls", "8000"],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=400,
    )
    if done.returncode == 77:
        pytest.skip(done.stdout.strip())
    assert done.returncode == 0, done.stdout + done.stderr
