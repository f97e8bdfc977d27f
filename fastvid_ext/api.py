"""The Python face of ``torch.ops.fastvid.prune``."""

from __future__ import annotations

import dataclasses
from itertools import pairwise

import torch
from torch import Tensor

from .config import PruneConfig

__all__ = ["PruneResult", "prune"]


@dataclasses.dataclass(frozen=True)
class PruneResult:
    """What :func:`prune` keeps of the T frames of B videos, of N tokens each.

    Attributes:
        tokens: (K, D) kept rows, in the dtype of the input; videos and frames in order.
        indices: (K,) int64, ascending: frame * N + token of each row, frames counted over the whole batch. Gather
            positions, M-RoPE ids and masks with it.
        frame_counts: (T,) int32, rows kept of each frame.
        cu_frames: (B+1,) video b owns frames cu_frames[b] to cu_frames[b+1].
        tokens_per_frame: (N).
    """

    tokens: Tensor
    indices: Tensor
    frame_counts: Tensor
    cu_frames: Tensor
    tokens_per_frame: int

    def cu_tokens(self) -> Tensor:
        """(B+1,) int64: video b owns rows cu_tokens[b] to cu_tokens[b+1] of tokens. No host sync."""
        rows_before = torch.nn.functional.pad(self.frame_counts.cumsum(0), (1, 0))
        return rows_before[self.cu_frames.to(rows_before.device, non_blocking=True).long()]

    def unpack(self) -> list[tuple[Tensor, Tensor]]:
        """(tokens, indices) of each video, indices counted from its own first token. Reads the counts back."""
        counts, bounds = self.frame_counts.tolist(), self.cu_frames.tolist()
        lengths = [sum(counts[begin:end]) for begin, end in pairwise(bounds)]
        videos = zip(self.tokens.split(lengths), self.indices.split(lengths), bounds, strict=False)
        return [(rows, indices - first * self.tokens_per_frame) for rows, indices, first in videos]


def prune(
    tokens: Tensor,
    saliency: Tensor,
    frame_features: Tensor | None = None,
    cu_frames: Tensor | None = None,
    config: PruneConfig = PruneConfig(),  # noqa: B008, it is frozen
) -> PruneResult:
    """Keep about ``config.retention_ratio`` of the tokens of one or more videos (FastVID, arXiv 2503.11187).

    Args:
        tokens: (T, N, D) one video or several packed along the frames, or (B, F, N, D) videos of one length; bf16,
            fp16 or fp32 (float64 too on the CPU), any strides.
        saliency: (T, N) or (B, F, N) as the tokens, floating; larger is more salient, NaN ranks last.
        frame_features: (T, C) or (B, F, C), floating, by which frames are compared; None: the mean of the tokens.
        cu_frames: (B+1,) int32 or int64 boundaries of packed videos, on the host (checked) or beside the tokens (never
            read back); None: one video. Not with (B, F, N, D).
        config: the parameters.

    Returns:
        PruneResult. With ``config.exact_count`` its size follows from shapes and nothing waits for the GPU; otherwise
        the number of rows is read back once.

    Raises:
        RuntimeError: an argument of a wrong rank, shape, dtype, device or value; the message names it.
        ValueError: cu_frames together with (B, F, N, D).
    """
    if tokens.dim() == 4:
        if cu_frames is not None:
            raise ValueError("cu_frames: got boundaries with tokens of shape (B, F, N, D), want None")
        batch, length = tokens.shape[:2]
        cu_frames = torch.arange(max(batch, 1) + 1, dtype=torch.int32) * (length if batch else 0)
        tokens, saliency = tokens.flatten(0, 1), _flatten_frames("saliency", saliency, batch, length)
        if frame_features is not None:
            frame_features = _flatten_frames("frame_features", frame_features, batch, length)
    rows, indices, frame_counts = torch.ops.fastvid.prune(
        tokens, saliency, frame_features, cu_frames, **config.to_kwargs()
    )
    if cu_frames is None:
        cu_frames = torch.tensor([0, tokens.shape[0]], dtype=torch.int32)
    return PruneResult(rows, indices, frame_counts, cu_frames, tokens.shape[1])


def _flatten_frames(name: str, values: Tensor, batch: int, length: int) -> Tensor:
    if values.dim() != 3 or values.shape[:2] != (batch, length):
        raise ValueError(f"{name}: got shape {tuple(values.shape)}, want (B, F, ...) = ({batch}, {length}, any)")
    return values.flatten(0, 1)
