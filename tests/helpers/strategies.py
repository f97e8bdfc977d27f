"""Arguments of prune as hypothesis draws them: every shape, parameter and layout, within a budget of work.

What is drawn are a few numbers that print in a line and from which the tensors can be made again, on any device.
"""

from __future__ import annotations

import dataclasses
import math

import torch
from hypothesis import strategies as st

from fastvid_ext import PruneConfig
from helpers import inputs

MOST = {"frames": 300, "tokens": 1024, "channels": 8192}
NEVER_MET = 2**62  # by a count of frames, tokens or segments


@dataclasses.dataclass(frozen=True)
class Drawn:
    """A video, or several: shape (T, N, D), what its values are like, and how they lie in memory."""

    frames: int
    tokens: int
    channels: int
    dtype: torch.dtype
    config: PruneConfig
    cu_frames: tuple[int, ...] | None = None
    cu_dtype: torch.dtype = torch.int32
    cu_beside_tokens: bool = False
    feature_channels: int | None = None
    scene_length: int = 6
    scale: float = 1.0
    saliency: str = "uniform"
    saliency_dtype: torch.dtype = torch.float32
    layout: str = "contiguous"
    saliency_layout: str = "contiguous"
    seed: int = 0

    def case(self, device="cpu") -> inputs.Case:
        if self.channels == 1:  # cosines of one channel are 1 or -1, so that only exact values rank as in float64
            tokens = inputs.exact_values(self.frames, self.tokens, 1, seed=self.seed)
        else:
            shape = (self.frames, self.tokens, self.channels)
            tokens = inputs.video(*shape, self.seed, scene_length=self.scene_length) * self.scale
        features = None
        if self.feature_channels is not None:
            shape = (self.frames, 1, self.feature_channels)
            features = inputs.video(*shape, self.seed + 1, scene_length=self.scene_length)
            features = inputs.laid_out(features.to(device, self.dtype), self.layout).squeeze(1)
        cu_frames = None
        if self.cu_frames is not None:
            cu_frames = torch.tensor(self.cu_frames, dtype=self.cu_dtype)
            cu_frames = cu_frames.to(device if self.cu_beside_tokens else "cpu")
        return inputs.Case(
            inputs.laid_out(tokens.to(device, self.dtype), self.layout),
            inputs.laid_out(self._saliency()[None].to(device), self.saliency_layout)[0],
            features,
            cu_frames,
            self.config,
        )

    def _saliency(self) -> torch.Tensor:
        values = torch.rand(self.frames, self.tokens, generator=inputs.generator(self.seed + 2))
        if self.saliency == "ties":
            values = (values * 4).round()
        elif self.saliency == "constant":
            values = torch.zeros_like(values)
        elif self.saliency == "descending":
            values = values.sort(1, descending=True).values
        elif self.saliency == "some_nan":
            values[values < 0.2] = math.nan
        return values.to(self.saliency_dtype)


def sizes(most: int) -> st.SearchStrategy[int]:
    """1 to most, small ones as often as large ones."""
    return st.one_of(*(st.integers(1, min(bound, most)) for bound in (8, 64, most)))


def ratios(*more: float) -> st.SearchStrategy[float]:
    return st.one_of(st.sampled_from([0.0, 1.0, 0.4, 0.6, *more]), st.floats(0, 1))


def counts() -> st.SearchStrategy[int]:
    return st.one_of(st.integers(1, 12), st.sampled_from([100, 2**31 - 1, 2**31, NEVER_MET]))


def thresholds() -> st.SearchStrategy[float]:
    return st.one_of(st.sampled_from([0.9, 0.84, 0.95, 0.0, 2.0, -2.0, math.inf, -math.inf]), st.floats(-1, 1))


def configs() -> st.SearchStrategy[PruneConfig]:
    return st.builds(
        PruneConfig,
        retention_ratio=ratios(0.1, 0.25, 0.5, 0.95, 1e-9).filter(lambda r: r > 0),
        min_segments=counts(),
        segment_threshold=thresholds(),
        context_ratio=ratios(),
        anchor_stride=counts(),
        merge_floor=ratios(),
        num_neighbors=counts(),
        thin_threshold=st.one_of(st.none(), st.none(), thresholds()),
        spread_remainder=st.booleans(),
        merge_centers=st.booleans(),
    )


@st.composite
def shapes(draw, elements: int, pairs: int) -> tuple[int, int, int]:
    """(T, N, D) with at most `elements` elements and `pairs` pairs of tokens within the frames."""
    chosen: dict[str, int] = {}
    for name in draw(st.permutations(list(MOST))):
        left = elements // math.prod(chosen.values())
        if name != "channels":
            squared = math.prod(chosen.get(other, 1) ** power for other, power in (("frames", 1), ("tokens", 2)))
            left = min(left, math.isqrt(pairs // squared) if name == "tokens" else pairs // squared)
        chosen[name] = draw(sizes(max(1, min(MOST[name], left))))
    frames = 0 if draw(st.integers(0, 40)) == 0 else chosen["frames"]
    return frames, chosen["tokens"], chosen["channels"]


@st.composite
def videos(draw, elements: int = 60_000, pairs: int = 1_000_000, dtypes=inputs.DTYPES) -> Drawn:
    frames, tokens, channels = draw(shapes(elements, pairs))
    bounds = st.lists(st.integers(0, frames), max_size=5).map(lambda cuts: (0, *sorted(cuts), frames))
    return Drawn(
        frames,
        tokens,
        channels,
        dtype=draw(st.sampled_from(dtypes)),
        config=draw(configs()),
        cu_frames=draw(st.one_of(st.none(), bounds)),
        cu_dtype=draw(st.sampled_from([torch.int32, torch.int64])),
        cu_beside_tokens=draw(st.booleans()),
        feature_channels=draw(st.one_of(st.none(), st.integers(2, 80))),
        scene_length=draw(st.integers(1, 20)),
        scale=draw(st.sampled_from([1.0, 1.0, 1.0, 1e-3, 8.0, 100.0])),
        saliency=draw(st.sampled_from(["uniform", "uniform", "ties", "constant", "descending", "some_nan"])),
        saliency_dtype=draw(st.sampled_from([torch.float64, *inputs.DTYPES])),
        layout=draw(st.sampled_from(inputs.LAYOUTS)),
        saliency_layout=draw(st.sampled_from(inputs.LAYOUTS)),
        seed=draw(st.integers(0, 2**20)),
    )
