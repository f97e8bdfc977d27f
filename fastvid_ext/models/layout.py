"""Which columns of a prompt hold which video."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from ..prompt_layout import num_newlines
from .families import EncodedVideo

__all__ = ["Span", "placed"]

Span = tuple[int, int, int] | tuple[int, Tensor]


def placed(
    encoded: Sequence[EncodedVideo], placeholders: Tensor, newline: str
) -> tuple[list[EncodedVideo], list[Span]]:
    """The videos in the order of a batch, and the span of each, as :func:`fastvid_ext.prune_embeddings` takes them.

    Placeholders take the videos' tokens row by row. Beam search encodes first and repeats the rows then, so each row
    may stand for several in succession, which share their videos.

    Args:
        encoded: the videos in the order in which they were encoded.
        placeholders: (B, L) bool on the host.
        newline: as in :func:`fastvid_ext.prune_embeddings`; newline tokens take placeholders too.

    Raises:
        ValueError: the tokens of the videos do not fill the placeholders.
    """
    sizes = [math.prod(video.grid) + num_newlines(video.grid, newline) for video in encoded]
    columns = [row.nonzero().flatten() for row in placeholders]
    wanted, given = sum(map(len, columns)), sum(sizes)
    repeats, rest = divmod(wanted, given) if given else (0, wanted)
    if rest or repeats == 0 or len(columns) % repeats:
        raise ValueError(f"input_ids: got {wanted} places for the tokens of videos, want {given}, as were encoded")
    spans: list[Span] = []
    videos: list[EncodedVideo] = []
    first = 0
    for row in range(0, len(columns), repeats):
        ends = _fitted(sizes[first:], len(columns[row]))
        for copy in range(row, row + repeats):
            spans += [_span(copy, columns[copy][begin:end]) for begin, end in zip([0, *ends], ends)]
            videos += encoded[first : first + len(ends)]
        first += len(ends)
    return videos, spans


def _fitted(sizes: list[int], room: int) -> list[int]:
    """Where each of the next videos ends, as many as fill the room."""
    ends, end = [], 0
    for size in sizes:
        if end == room:
            break
        end += size
        ends.append(end)
    if end != room:
        raise ValueError(f"input_ids: got {room} places for the tokens of videos in one row, want {end}")
    return ends


def _span(row: int, columns: Tensor) -> Span:
    if len(columns) and int(columns[-1] - columns[0]) + 1 == len(columns):
        return row, int(columns[0]), int(columns[-1]) + 1
    return row, columns
