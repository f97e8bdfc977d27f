"""Synthetic video features that look to the ops as those of a vision encoder do; the same for the same seed and device.

A video is a row of scenes of 4 to 12 frames, 8 on average. A scene's tokens show 24 objects, each token an object's
vector plus its own, so that tokens cluster and merge unevenly. A frame adds noise to every token and one offset to all
of them. The offset sets the similarity of neighbouring frames: 0.93 to 0.98 within a scene (so 0.9 and 0.84 cut at
scenes only, and 0.95 thins some frames, not all), about 0 between scenes. Segments are as long as scenes where the
video is longer than eight of them; shorter ones are cut further, into the least number of segments (8 by default).
Saliency is uniform noise in float32.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import fastvid_ext
from fastvid_ext import reference

from .cases import Case

__all__ = ["Call", "call_of", "features", "make", "nbytes", "video"]

NUM_OBJECTS = 24
TOKEN_SPREAD = 0.5  # of a token around its object
NOISE = 0.25  # of a token from frame to frame
OFFSET = (0.1, 0.26)  # of a frame, relative to the mean of its scene's tokens


@dataclasses.dataclass(frozen=True)
class Call:
    """A case's op with its parameters. All but `plain_reference` take only the tensors of :func:`make`.

    Attributes:
        op: torch.ops.fastvid.NAME.
        public: what a user calls: the same, but for prune.
        reference: fastvid_ext.reference.NAME.
        plain_reference, parameters: the same in two parts, for torch.compile.
    """

    op: Callable
    public: Callable
    reference: Callable
    plain_reference: Callable
    parameters: dict[str, Any]


def call_of(case: Case) -> Call:
    plain_reference = getattr(reference, case.op)
    parameters = case.config.to_kwargs(case.op)
    op = functools.partial(getattr(torch.ops.fastvid, case.op), **parameters)
    public = functools.partial(fastvid_ext.prune, config=case.config) if case.op == "prune" else op
    return Call(op, public, functools.partial(plain_reference, **parameters), plain_reference, parameters)


def make(case: Case, seed: int, device: torch.device) -> tuple[Any, ...]:
    """The positional arguments of one call of the case's op."""
    generator = torch.Generator(device).manual_seed(seed)
    scenes = _scenes(case, seed)
    if case.op in ("segment", "plan"):
        frame_features = features(case, scenes, generator)
        if case.op == "segment":
            return frame_features, _cu_frames(case, device)
        return *reference.segment(frame_features), case.tokens_per_frame
    tokens = video(case, scenes, generator)
    saliency = torch.rand(case.shape[:2], generator=generator, device=device)
    if case.op in ("prune", "prune_padded"):
        return tokens, saliency, None, _cu_frames(case, device)
    # A stage sees what it would in prune, with every frame an anchor frame.
    salient, centers = _budget(case)
    mask = saliency.argsort(1).argsort(1) >= salient
    if case.op == "knn_density":
        return tokens, mask
    density = torch.ops.fastvid.knn_density(tokens, mask)
    if case.op == "select_peaks":
        return tokens, density, centers, mask
    return tokens, torch.ops.fastvid.select_peaks(tokens, density, centers, mask)[0], mask


def video(case: Case, scenes: list[int], generator: torch.Generator) -> Tensor:
    """(T, N, D) tokens in the case's dtype."""
    _, n, d = case.shape
    options = {"generator": generator, "device": generator.device}
    tokens = torch.empty(case.shape, dtype=case.dtype, device=generator.device)
    begin = 0
    for length in scenes:
        objects = torch.randn(NUM_OBJECTS, d, **options)
        base = objects[torch.randint(NUM_OBJECTS, (n,), **options)] + TOKEN_SPREAD * torch.randn(n, d, **options)
        frames = NOISE * torch.randn(length, n, d, **options) + base + _offsets(base.mean(0), length, options)[:, None]
        tokens[begin : begin + length] = frames
        begin += length
    return tokens


def features(case: Case, scenes: list[int], generator: torch.Generator) -> Tensor:
    """(T, D) float32 frame features with the scenes of :func:`video`, without its tokens."""
    options = {"generator": generator, "device": generator.device}
    bases = [torch.randn(case.channels, **options) for _ in scenes]
    return torch.cat([base + _offsets(base, length, options) for base, length in zip(bases, scenes)])


def nbytes(values: Any) -> int:
    """Bytes of all tensors in an argument list or a result."""
    if isinstance(values, Tensor):
        return values.numel() * values.element_size()
    return sum(map(nbytes, values)) if isinstance(values, (tuple, list)) else 0


def _offsets(mean: Tensor, length: int, options: dict[str, Any]) -> Tensor:
    low, high = OFFSET
    size = (low + (high - low) * torch.rand(length, 1, **options)) * mean.square().mean().sqrt()
    return size * torch.randn(length, len(mean), **options)


def _scenes(case: Case, seed: int) -> list[int]:
    """Lengths of the scenes; every video starts a new one."""
    host = torch.Generator().manual_seed(seed)
    longest = case.frames // case.videos
    lengths = []
    for _ in range(case.videos):
        left = longest
        while left > 0:
            mean = case.scene_length or longest
            spread = mean // 2 if case.scene_length else 0
            length = min(left, mean + int(torch.randint(-spread, spread + 1, (), generator=host)))
            lengths.append(length)
            left -= length
    return lengths


def _cu_frames(case: Case, device: torch.device) -> Tensor | None:
    if case.videos == 1:
        return None
    return torch.arange(case.videos + 1, dtype=torch.int32, device=device) * (case.frames // case.videos)


def _budget(case: Case) -> tuple[int, int]:
    """Salient tokens of a frame, and centres of an anchor frame of a long segment."""
    budget = max(1, int(case.tokens_per_frame * case.config.retention_ratio))
    context = budget * case.config.context_ratio
    centers = min(int(context * case.config.anchor_stride), case.tokens_per_frame // 2)
    return budget - int(context), max(1, centers)
