"""``python -m bench [run|draw]``; the package's docstring says what is measured, and how."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

FOLDER = Path(__file__).resolve().parent


def git_version() -> str | None:
    """The commit that is benched: FASTVID_GIT where it is set, else ``git describe``; None where neither tells."""
    if named := os.environ.get("FASTVID_GIT"):
        return named
    command = ["git", "-C", str(FOLDER), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="python -m bench", description="Microbenchmarks of torch.ops.fastvid.")
    commands = top.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="measure (the default)")
    run.add_argument("--quick", action="store_true", help="only the rows with a target, without the reference")
    run.add_argument("--ops", nargs="+", metavar="OP", help="only these ops")
    run.add_argument("--out", type=Path, metavar="FILE.json", help="default for a full run: bench/results/DEVICE.json")
    run.add_argument("--device", choices=("cuda", "cpu"), help="default: cuda where there is one")
    run.add_argument(
        "--compile-seconds",
        type=float,
        metavar="S",
        help="time for the reference under torch.compile, all ops together; 0: none (default: 60, on a CPU 0)",
    )
    draw = commands.add_parser("draw", help="draw the pictures of a run")
    draw.add_argument("results", type=Path, nargs="?", default=FOLDER / "results" / "h200.json")
    return top


def main(argv: Sequence[str] | None = None) -> int:
    argv = list(sys.argv[1:] if argv is None else argv)
    if argv[:1] not in (["run"], ["draw"], ["-h"], ["--help"]):
        argv.insert(0, "run")
    args = parser().parse_args(argv)
    if args.command == "draw":
        from .draw import draw

        return draw(args.results)
    from .run import run

    return run(args, git_version())


if __name__ == "__main__":
    sys.exit(main())
