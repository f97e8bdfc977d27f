"""The vectors of tests/golden, made with the official FastVID code in float64."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import torch

from fastvid_ext import PruneConfig

FOLDER = Path(__file__).parent.parent / "golden"
NAMES = sorted(path.stem for path in FOLDER.glob("*.npz"))


@dataclasses.dataclass
class Golden:
    tokens: torch.Tensor  # (T, N, D) float16, as saliency and frame_features
    saliency: torch.Tensor
    frame_features: torch.Tensor
    config: PruneConfig
    kept_index: torch.Tensor  # (K,) int64
    kept_tokens: torch.Tensor  # (K, D) float32
    segment_sizes: list[int]


def load(name: str) -> Golden:
    arrays = np.load(FOLDER / f"{name}.npz")
    params = json.loads(arrays["params"].item())
    thin = {"thin_threshold": params["thin"]} if "thin" in params else {}
    config = getattr(PruneConfig, params["variant"])(
        retention_ratio=params["r"],
        min_segments=params["c"],
        segment_threshold=params["tau"],
        context_ratio=params["d"],
        anchor_stride=params["p"],
        merge_floor=params["beta"],
        **thin,
    )
    tensors = [torch.from_numpy(arrays[key]) for key in ("tokens", "saliency", "frame_features")]
    kept_index = torch.from_numpy(arrays["kept_index"]).long()
    return Golden(
        *tensors, config, kept_index, torch.from_numpy(arrays["kept_tokens"]), arrays["segment_sizes"].tolist()
    )
