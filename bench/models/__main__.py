"""``python -m bench.models``; the package's docstring says what is measured, and how."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from ..__main__ import FOLDER, git_version

MODELS = ("llava_onevision", "llava_video", "qwen2_vl", "qwen2_5_vl")


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="python -m bench.models", description="Where the time of a video language model goes."
    )
    top.add_argument("--models", nargs="+", choices=MODELS, default=MODELS, metavar="M", help=", ".join(MODELS))
    top.add_argument("--batches", nargs="+", type=int, default=(1, 8), metavar="B", help="videos at a time (1 8)")
    top.add_argument("--ratios", nargs="+", type=float, default=(0.1, 0.25), metavar="R", help="kept (0.1 0.25)")
    top.add_argument("--seconds", type=float, default=float("inf"), metavar="S", help="stop a model's rows after that")
    top.add_argument("--device", choices=("cuda", "cpu"), help="default: cuda where there is one")
    top.add_argument("--tiny", action="store_true", help="toy sizes; prints, writes nothing without --out")
    top.add_argument("--out", type=Path, metavar="FILE.json", help="default: bench/results/DEVICE_models.json")
    top.add_argument("--draw", type=Path, metavar="FILE.json", help="only .md and .png from these results")
    return top


def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_args(argv)
    if args.draw is not None:
        from .report import present

        return present(args.draw)
    from .run import run

    return run(args, FOLDER / "results", git_version())


if __name__ == "__main__":
    sys.exit(main())
