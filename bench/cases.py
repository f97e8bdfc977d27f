"""What is benched: shapes, parameters, and the targets that some of them have on an NVIDIA H200."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from fastvid_ext import PruneConfig

__all__ = ["STAGES", "Case", "cases"]

STAGES = ("segment", "plan", "knn_density", "select_peaks", "scatter_merge")


@dataclasses.dataclass(frozen=True)
class Case:
    """One row of the results.

    Attributes:
        op: name in torch.ops.fastvid.
        mode: what sets the case apart from the default: preset, content, packing.
        frames, tokens_per_frame, channels: (T, N, D); T counts the frames of all videos.
        scene_length: frames a scene on average; 0: the whole video is one scene.
        videos: videos of equal length packed along T.
        target_us, stretch_us: GPU time on an NVIDIA H200 with cold inputs that is asked for and hoped for.
    """

    op: str
    mode: str
    frames: int
    tokens_per_frame: int = 196
    channels: int = 3584
    dtype: torch.dtype = torch.bfloat16
    config: PruneConfig = dataclasses.field(default_factory=PruneConfig)
    scene_length: int = 8
    videos: int = 1
    target_us: float | None = None
    stretch_us: float | None = None

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.frames, self.tokens_per_frame, self.channels

    @property
    def compiled(self) -> bool:
        """Whether the reference is timed under torch.compile too: it takes long to compile, so a few shapes only."""
        shapes = [(32, 196)] if self.op == "prune" else [(32, 196), (128, 196)]
        default = self.config == PruneConfig() and self.mode == "default" and self.dtype == torch.bfloat16
        return default and self.shape[:2] in shapes

    def fields(self) -> dict[str, Any]:
        """What identifies the case in the results."""
        return {
            "op": self.op,
            "mode": self.mode,
            "T": self.frames,
            "N": self.tokens_per_frame,
            "D": self.channels,
            "dtype": str(self.dtype).removeprefix("torch."),
            "retention_ratio": self.config.retention_ratio,
        }


def cases(device: str, quick: bool = False) -> list[Case]:
    """All cases for "cuda" or "cpu"; with `quick` those that have a target (on a CPU: the smallest)."""
    if device == "cpu":
        return _on_cpu()[: 3 if quick else None]
    return _targets() if quick else _targets() + _sweep() + _stress() + _stages()


def _targets() -> list[Case]:
    qwen = PruneConfig.qwen2_5_vl(retention_ratio=0.27)
    return [
        Case("prune", "default", 8, target_us=20, stretch_us=14),
        Case("prune", "default", 32, target_us=40, stretch_us=28),
        Case("prune_padded", "llava_onevision", 32, config=PruneConfig.llava_onevision(), target_us=40, stretch_us=28),
        Case("prune", "default", 64, 169, target_us=55, stretch_us=40),
        Case("prune", "default", 128, target_us=110, stretch_us=75),
        Case("prune", "default", 512, target_us=370, stretch_us=280),
        # prune reads the count back in this mode, so its graph-capturable form stands for it.
        Case("prune_padded", "qwen2_5_vl", 384, 144, config=qwen, target_us=220, stretch_us=150),
        Case("prune", "8 videos", 256, videos=8, target_us=190, stretch_us=140),
    ]


def _sweep() -> list[Case]:
    return [Case("prune", "default", frames) for frames in (16, 64, 256, 1024)]


def _stress() -> list[Case]:
    return [
        Case("prune", "one scene", 32, scene_length=0),
        Case("prune", "one segment", 32, scene_length=0, config=PruneConfig(min_segments=1)),
        Case("prune", "single-frame segments", 32, scene_length=1),
        Case("prune", "default", 32, config=PruneConfig(retention_ratio=0.05)),
        Case("prune", "default", 32, config=PruneConfig(retention_ratio=0.25)),
        Case("prune", "default", 32, config=PruneConfig(retention_ratio=0.5)),
        Case("prune", "default", 32, dtype=torch.float16),
        Case("prune", "default", 128, dtype=torch.float32),
    ]


def _stages() -> list[Case]:
    shapes = ((8, 196), (32, 196), (64, 169), (128, 196), (384, 144), (512, 196))
    return [Case(op, "default", frames, tokens) for op in STAGES for frames, tokens in shapes]


def _on_cpu() -> list[Case]:
    small = {"tokens_per_frame": 49, "channels": 256, "dtype": torch.float32}
    rows = [Case("prune", "default", frames, **small) for frames in (8, 16, 32)]
    rows += [
        Case("prune_padded", "llava_onevision", 16, config=PruneConfig.llava_onevision(), **small),
        Case("prune_padded", "qwen2_5_vl", 16, config=PruneConfig.qwen2_5_vl(retention_ratio=0.27), **small),
        Case("prune", "2 videos", 16, videos=2, **small),
        Case("prune", "one scene", 16, scene_length=0, **small),
        Case("prune", "single-frame segments", 16, scene_length=1, **small),
    ]
    return rows + [Case(op, "default", frames, **small) for op in STAGES for frames in (8, 32)]
