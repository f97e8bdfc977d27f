"""Inputs of the tests: random videos, memory layouts, devices."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from fastvid_ext import PruneConfig

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
LAYOUTS = ("contiguous", "sliced", "transposed", "offset", "wide_rows", "strided_channels")


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def gaussian(*shape: int, seed: int = 0, device="cpu", dtype=torch.float32, scale: float = 1.0) -> Tensor:
    return (torch.randn(*shape, generator=generator(seed)) * scale).to(device, dtype)


def exact_values(*shape: int, seed: int = 0, device="cpu", dtype=torch.float32) -> Tensor:
    """Powers of two with signs, whose norms and quotients float32 computes exactly where there is one channel."""
    exponents = torch.randint(-1, 2, shape, generator=generator(seed))
    signs = torch.randint(0, 2, shape, generator=generator(seed + 1)) * 2 - 1
    return (signs * 2.0**exponents).to(device, dtype)


def laid_out(x: Tensor, layout: str) -> Tensor:
    """The same values (A, B, C) at other strides."""
    a, b, c = x.shape
    if layout == "contiguous":
        return x.contiguous()
    if layout == "sliced":  # every second frame, from the second token on
        whole = x.new_full((2 * a + 1, b + 3, c), 77.0)
        view = whole[1::2, 2 : b + 2]
    elif layout == "transposed":
        view = x.new_full((b, a, c), 77.0).transpose(0, 1)
    elif layout == "offset":  # one element off any alignment
        view = x.new_full((a * b * c + 1,), 77.0)[1:].view(a, b, c)
    elif layout == "wide_rows":
        view = x.new_full((a, b, c + 3), 77.0)[..., 1 : c + 1]
    else:
        view = x.new_full((a, b, 2 * c), 77.0)[..., ::2]
    return view.copy_(x)


@dataclasses.dataclass
class Case:
    """Arguments of prune."""

    tokens: Tensor
    saliency: Tensor
    frame_features: Tensor | None
    cu_frames: Tensor | None
    config: PruneConfig

    def arguments(self) -> tuple[tuple, dict]:
        return (self.tokens, self.saliency, self.frame_features, self.cu_frames), self.config.to_kwargs()

    def to(self, device) -> Case:
        tensors = (self.tokens, self.saliency, self.frame_features, self.cu_frames)
        return Case(*(None if x is None else x.to(device) for x in tensors), self.config)

    def run(self, op=None) -> tuple[Tensor, Tensor, Tensor]:
        args, kwargs = self.arguments()
        return (op or torch.ops.fastvid.prune)(*args, **kwargs)


def video(frames: int, n: int, channels: int, seed: int, scene_length: int = 6, noise: float = 0.25) -> Tensor:
    """(T, N, D) float32 tokens of scenes that drift and change."""
    rng = generator(seed)
    scenes = frames // scene_length + 1
    base = torch.randn(scenes, n, channels, generator=rng).repeat_interleave(scene_length, 0)[:frames]
    return base + noise * torch.randn(frames, n, channels, generator=rng)


def make_case(
    frames: int,
    n: int,
    channels: int,
    *,
    seed: int = 0,
    device="cpu",
    dtype=torch.float32,
    layout: str = "contiguous",
    features: int | None = 24,
    cu_frames: list[int] | None = None,
    **config,
) -> Case:
    """A random video; features: channels of its frame_features, None: the mean of the tokens."""
    tokens = video(frames, n, channels, seed).to(device, dtype)
    saliency = torch.rand(frames, n, generator=generator(seed + 1)).to(device)
    frame_features = None
    if features is not None:
        frame_features = video(frames, 1, features, seed + 2).squeeze(1).to(device, dtype)
    return Case(
        laid_out(tokens, layout),
        saliency,
        frame_features,
        None if cu_frames is None else torch.tensor(cu_frames, dtype=torch.int32),
        PruneConfig(**config),
    )


def random_case(
    seed: int,
    device="cpu",
    dtype=torch.float32,
    *,
    most_frames: int = 64,
    most_tokens: int = 300,
    most_channels: int = 1200,
) -> Case:
    """Shapes, parameters and layouts drawn at random."""
    rng = generator(seed)

    def draw(*choices):
        return choices[int(torch.randint(len(choices), (), generator=rng))]

    def between(low, high):
        return int(torch.randint(low, max(low, high) + 1, (), generator=rng))

    few, some, many = between(1, 2), between(3, 16), between(17, most_frames)
    frames = min(draw(few, some, some, some, many), most_frames)
    few, some, many = between(1, 5), between(6, 64), between(65, most_tokens)
    n = min(draw(few, some, some, some, many, many, many), most_tokens)
    if frames * n > 6000:
        most_channels = min(most_channels, 128)
    channels = draw(32, 64, 40, 33, between(32, most_channels), between(32, most_channels))
    cu_frames = None
    if draw(True, False, False):
        inner = sorted(between(0, frames) for _ in range(between(0, 4)))
        cu_frames = [0, *inner, frames]
    case = make_case(
        frames,
        n,
        channels,
        seed=seed,
        device=device,
        dtype=dtype,
        layout=draw(*LAYOUTS),
        features=draw(None, 8, 32, 57),
        cu_frames=cu_frames,
        retention_ratio=draw(
            0.1, 0.1, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0, between(1, 999) / 1000, between(50, 400) / 1000
        ),
        min_segments=draw(1, 2, 4, 8, 20),
        segment_threshold=draw(0.9, 0.84, 0.5, -2.0),
        context_ratio=draw(0.0, 0.2, 0.4, 0.4, 0.6, 0.8, 1.0),
        anchor_stride=draw(1, 2, 3, 4, 7, 100),
        merge_floor=draw(0.0, 0.3, 0.6, 0.9, 1.0),
        num_neighbors=draw(1, 2, 4, 9, 10**6),
        thin_threshold=draw(None, None, None, 0.95, 0.93, 0.5),
        spread_remainder=draw(True, True, False),
        merge_centers=draw(True, False),
    )
    if draw(True, False):  # ties among the saliencies
        case.saliency = (case.saliency * 8).round() / 8
    case.saliency = case.saliency.to(draw(torch.float32, torch.float16, torch.float64))
    return case
