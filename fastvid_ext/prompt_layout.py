"""Where the videos of a batch of prompts stand: what a prune can know before the embeddings are there."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["NEWLINES", "Grid", "PromptLayout", "Text", "VideoSpan", "num_newlines", "to_device"]

NEWLINES = ("none", "one", "grid", "frame")
Grid = tuple[int, int, int]
Span = tuple[int, int, int] | tuple[int, Tensor]


def num_newlines(grid: Grid, newline: str) -> int:
    """Newline tokens that a video of this grid holds."""
    frames, height, _ = grid
    return {"none": 0, "one": 1, "grid": frames * height, "frame": frames}[newline]


def to_device(values: Tensor, device: torch.device) -> Tensor:
    """The same there, without waiting for what the device is busy with, as a copy from memory that can be paged may."""
    if device.type == "cuda" and not (values.is_cuda or torch.cuda.is_current_stream_capturing()):
        values = values.pin_memory()
    return values.to(device, non_blocking=True)


@dataclasses.dataclass(frozen=True)
class VideoSpan:
    """One video of a batch of prompts.

    Attributes:
        row: (b) of the batch.
        grid: (T, H, W) frames, and rows and columns of tokens a frame.
        place: its columns: a range, or ascending int64 on the device where other tokens stand among its own.
        columns: the same as int64 on the device.
        group: tokens before each newline token; 0 where none stands among them.
    """

    row: int
    grid: Grid
    place: slice | Tensor
    columns: Tensor
    group: int

    @property
    def tokens_per_frame(self) -> int:
        """N = H * W."""
        return self.grid[1] * self.grid[2]

    def groups(self, indices: Tensor) -> Tensor:
        """The group of each token of these numbers, frame * N + token, where newlines stand among them."""
        return indices.div(self.group, rounding_mode="floor")

    def offsets(self, indices: Tensor) -> Tensor:
        """Where the tokens of these numbers stand among its columns."""
        return indices + self.groups(indices) if self.group else indices

    def tokens(self, embeddings: Tensor) -> Tensor:
        """(T, N, D) its tokens in those of its row (L, D): a view, unless others stand among them."""
        block = embeddings[self.place]
        if self.group:  # no slices of groups: copies of them are half as fast
            numbers = torch.arange(self.grid[0] * self.tokens_per_frame, device=block.device)
            block = block.index_select(0, self.offsets(numbers))
        return block.view(self.grid[0], self.tokens_per_frame, block.shape[-1])

    def newlines(self, block: Tensor) -> Tensor:
        """(G, ...) the entries of its newline tokens among those of its columns."""
        return block.unflatten(0, (len(block) // (self.group + 1), self.group + 1))[:, -1]


@dataclasses.dataclass(frozen=True)
class Text:
    """Tokens of a row that stay as they are; ``place`` and ``columns`` as of a video."""

    place: slice | Tensor
    columns: Tensor


class PromptLayout:
    """The arguments of :func:`fastvid_ext.prune_embeddings` that say where things are, checked and taken apart.

    Attributes:
        batch, length: (B, L).
        videos: in the order of ``video_spans``.
        rows: what stands in each row of the batch, videos by number, without what is known to be padding.
        has_groups: whether newline tokens stand among those of a video.
        sorted: whether that is in the order of the columns only when it has been sorted: then, or where a video does
            not stand in one piece, or where what is not kept becomes padding.
        columns: (B, L) int64 on the device, the number of each column; with ``fixed_length``, -1 at padding.
        attention_mask, padding_side, fixed_length: as in ``prune_embeddings``.
    """

    def __init__(
        self,
        shape: Sequence[int],
        device: torch.device,
        video_spans: Sequence[Span],
        *,
        grid: Grid | Sequence[Grid],
        newline: str = "none",
        attention_mask: Tensor | None = None,
        padding_side: str = "left",
        fixed_length: bool = False,
    ) -> None:
        if newline not in NEWLINES:
            raise ValueError(f"newline: got {newline!r}, want one of {', '.join(NEWLINES)}")
        if padding_side not in ("left", "right"):
            raise ValueError(f"padding_side: got {padding_side!r}, want 'left' or 'right'")
        self.batch, self.length = shape
        if attention_mask is not None and attention_mask.shape != (self.batch, self.length):
            wanted = (self.batch, self.length)
            raise ValueError(f"attention_mask: got shape {tuple(attention_mask.shape)}, want (B, L) = {wanted}")
        self.attention_mask, self.padding_side, self.fixed_length = attention_mask, padding_side, fixed_length
        self.columns = torch.arange(self.length, device=device).expand(self.batch, -1)
        text = torch.ones(self.batch, self.length, dtype=torch.bool)
        if attention_mask is not None and fixed_length:
            self.columns = self.columns_present()
        self.videos = []
        for number, (span, shape) in enumerate(zip(video_spans, _grids(grid, len(video_spans)))):
            row, place = _placed(f"video_spans[{number}]", span, shape, newline, text)
            if isinstance(place, Tensor):
                place = to_device(place, device)
            group = {"grid": shape[2], "frame": shape[1] * shape[2]}.get(newline, 0)
            self.videos.append(VideoSpan(row, shape, place, self.columns[row, place], group))
        if attention_mask is not None and not fixed_length:
            text &= attention_mask.to("cpu", torch.bool)
        self.rows = [self._row(row, text[row]) for row in range(self.batch)]
        self.has_groups = any(video.group for video in self.videos)
        in_pieces = any(isinstance(video.place, Tensor) for video in self.videos)
        self.sorted = fixed_length or self.has_groups or in_pieces

    def columns_present(self) -> Tensor:
        """(B, L) the number of each column, -1 at padding."""
        if self.attention_mask is None:
            return self.columns
        present = self.attention_mask.to(self.columns.device, torch.bool, non_blocking=True)
        return torch.where(present, self.columns, -1)

    def _row(self, row: int, text: Tensor) -> list[Text | int]:
        numbers = [number for number, video in enumerate(self.videos) if video.row == row]
        if any(isinstance(self.videos[number].place, Tensor) for number in numbers):  # to be sorted in any case
            place = to_device(text.nonzero().flatten(), self.columns.device)
            return [Text(place, self.columns[row, place]), *numbers]
        edges = F.pad(text.int(), (1, 1)).diff().nonzero().flatten().tolist()
        runs = [slice(begin, end) for begin, end in zip(edges[::2], edges[1::2])]
        parts: list[tuple[int, Text | int]] = [(run.start, Text(run, self.columns[row, run])) for run in runs]
        parts += [(self.videos[number].place.start, number) for number in numbers]
        return [part for _, part in sorted(parts, key=lambda found: found[0])]


def _grids(grid: Grid | Sequence[Grid], count: int) -> list[Grid]:
    grids = [grid] * count if len(grid) == 3 and isinstance(grid[0], int) else list(grid)
    if len(grids) != count:
        raise ValueError(f"grid: got {len(grids)} for {count} videos, want one for all or one for each")
    for shape in grids:
        if len(shape) != 3 or shape[0] < 0 or min(shape[1:]) < 1:
            raise ValueError(f"grid: got {tuple(shape)}, want (T, H, W) frames and rows and columns of tokens")
    return [tuple(int(size) for size in shape) for shape in grids]


def _placed(name: str, span: Span, grid: Grid, newline: str, text: Tensor) -> tuple[int, slice | Tensor]:
    """The row and the columns of a video, which are taken out of the text (B, L)."""
    row, place = _checked_span(name, span, text)
    frames, height, width = grid
    newlines = num_newlines(grid, newline)
    count = len(place) if isinstance(place, Tensor) else place.stop - place.start
    if count != frames * height * width + newlines:
        raise ValueError(
            f"{name}: got {count} columns, want {frames * height * width + newlines}: "
            f"T * H * W = {frames} * {height} * {width} tokens and {newlines} newlines (newline={newline!r})"
        )
    if not text[row, place].all():
        raise ValueError(f"{name}: got columns that another video takes")
    if newline == "one":  # it stays, like text
        place = place[:-1] if isinstance(place, Tensor) else slice(place.start, place.stop - 1)
    text[row, place] = False
    return row, place


def _checked_span(name: str, span: Span, text: Tensor) -> tuple[int, slice | Tensor]:
    batch, length = text.shape
    row, *columns = span
    if not 0 <= row < batch:
        raise ValueError(f"{name}: got row {row}, want a row of inputs_embeds, 0 to {batch - 1}")
    if len(columns) == 2:
        start, stop = columns
        if not 0 <= start <= stop <= length:
            raise ValueError(f"{name}: got columns {start} to {stop}, want a range within 0 to {length}")
        return row, slice(start, stop)
    [columns] = columns
    columns = torch.as_tensor(columns, dtype=torch.int64).cpu()
    ascending = columns.dim() == 1 and bool((columns.diff() > 0).all())
    if not ascending or (len(columns) and not 0 <= columns[0] <= columns[-1] < length):
        raise ValueError(f"{name}: got columns {columns.tolist()}, want them ascending within 0 to {length - 1}")
    return row, columns
