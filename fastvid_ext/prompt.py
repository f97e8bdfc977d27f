"""Prunes the videos inside the embeddings of a prompt, for use in any model's forward."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .config import PruneConfig, retained_count

__all__ = ["NEWLINES", "PromptPruning", "VideoPruning", "norm_saliency", "num_newlines", "prune_embeddings"]

NEWLINES = ("none", "one", "grid", "frame")
Grid = tuple[int, int, int]


@dataclasses.dataclass(frozen=True)
class VideoPruning:
    """What was kept of one video of a prompt. Newline tokens do not count.

    Attributes:
        row: (b) row of the batch that holds the video.
        grid: (T, H, W) frames, and rows and columns of tokens a frame; N = H * W.
        indices: (K,) int64, ascending: frame * N + token of each kept token. With ``fixed_length`` there are always
            ``retained_count`` of them, those past the kept ones -1.
        frame_counts: (T,) int32, tokens kept of each frame.
        frame_features: (T, C) what the frames were compared by.
        config: the parameters.
    """

    row: int
    grid: Grid
    indices: Tensor
    frame_counts: Tensor
    frame_features: Tensor
    config: PruneConfig

    @property
    def tokens_before(self) -> int:
        """T * H * W."""
        frames, height, width = self.grid
        return frames * height * width

    @property
    def tokens_after(self) -> int:
        """Tokens kept, read back from the device."""
        return int(self.frame_counts.sum())

    @property
    def segments(self) -> Tensor:
        """(T,) int32 segment of each frame, computed when asked for."""
        return self.segment()[0]

    def segment(self) -> tuple[Tensor, Tensor]:
        """The segments, and (T,) the similarity of each frame to the next: what ``torch.ops.fastvid.segment`` gives."""
        return torch.ops.fastvid.segment(
            self.frame_features, min_segments=self.config.min_segments, threshold=self.config.segment_threshold
        )


@dataclasses.dataclass(frozen=True)
class PromptPruning:
    """Where the columns of a pruned prompt come from.

    Attributes:
        columns: (B, K) int64 column of the unpruned prompt at each place, ascending in a row; -1 at padding.
        length_before: (L) columns of the unpruned prompt.
        videos: what was kept of each video, in the order of ``video_spans``.
        padded: whether any place may be padding, as far as the host knows.
    """

    columns: Tensor
    length_before: int
    videos: tuple[VideoPruning, ...]
    padded: bool

    @property
    def mask(self) -> Tensor:
        """(B, K) bool, False at padding: the attention mask of the pruned prompt."""
        return self.columns >= 0

    @property
    def tokens_before(self) -> int:
        """Tokens of all videos."""
        return sum(video.tokens_before for video in self.videos)

    @property
    def tokens_after(self) -> int:
        """Tokens kept of all videos."""
        return sum(video.tokens_after for video in self.videos)

    def gather(self, values: Tensor) -> Tensor:
        """The entries of the kept columns: (..., B or 1, L), such as position ids, gives (..., B, K).

        Padding gets the entry of column 0.
        """
        if values.shape[-1] != self.length_before:
            raise ValueError(f"values: got shape {tuple(values.shape)}, want (..., {self.length_before})")
        columns = self.columns.clamp_min(0).to(values.device)
        batch, kept = columns.shape
        shape = values.shape[:-2]
        return values.expand(*shape, batch, -1).gather(-1, columns.expand(*shape, batch, kept))


def num_newlines(grid: Grid, newline: str) -> int:
    """Newline tokens that a video of this grid holds."""
    frames, height, _ = grid
    return {"none": 0, "one": 1, "grid": frames * height, "frame": frames}[newline]


def norm_saliency(tokens: Tensor) -> Tensor:
    """(T, N) float32 lengths of the tokens (T, N, D): a saliency that asks nothing of the vision tower."""
    return torch.linalg.vector_norm(tokens, dim=-1, dtype=torch.promote_types(tokens.dtype, torch.float32))


def prune_embeddings(
    inputs_embeds: Tensor,
    video_spans: Sequence[tuple[int, int, int] | tuple[int, Tensor]],
    *,
    grid: Grid | Sequence[Grid],
    newline: str = "none",
    saliency: str | Tensor | Sequence[Tensor] = "norm",
    frame_features: Tensor | Sequence[Tensor] | None = None,
    config: PruneConfig | None = None,
    attention_mask: Tensor | None = None,
    padding_side: str = "left",
    fixed_length: bool = False,
) -> tuple[Tensor, PromptPruning]:
    """Prune the videos inside a batch of embedded prompts.

    The other tokens stay as they are. Rows that end up shorter than others are padded again, and padding that no row
    needs any more goes.

    Args:
        inputs_embeds: (B, L, D) embeddings of the prompts, the tokens of the videos in their places.
        video_spans: for each video (row, start, stop), the columns that it takes in a row of the batch, its newline
            tokens included; or (row, columns), ascending int64, where other tokens stand among its own.
        grid: (T, H, W) frames, and rows and columns of tokens a frame, of every video, or one such triple for each.
        newline: the newline tokens that the model puts among a video's tokens. "none"; "one": one behind the video, it
            stays; "grid": one behind each row of tokens, it stays where a token of its row stays; "frame": one behind
            each frame, it stays where a token of its frame stays.
        saliency: (T, N) floating for one video, one such tensor for each of several, or "norm": the lengths of the
            tokens.
        frame_features: (T, C) floating for one video, one such tensor for each of several; None: the mean of each
            frame's tokens.
        config: the parameters; the defaults when None.
        attention_mask: (B, L), zero at padding; None: there is none. On the host it saves a sync.
        padding_side: "left" or "right", where a row is padded.
        fixed_length: let K follow from shapes alone, in every mode and with all newlines, and never sync: what is not
            kept becomes padding, which ``PromptPruning.mask`` tells. For CUDA graphs.

    Returns:
        Embeddings (B, K, D), and what they are made of. Gather position ids and masks with ``PromptPruning.gather``.
        Where the retention ratio keeps everything, the first is ``inputs_embeds`` itself.

    Raises:
        ValueError: an argument of a wrong shape or value; the message names it.
        RuntimeError: as from :func:`fastvid_ext.prune`.
    """
    config = PruneConfig() if config is None else config
    if inputs_embeds.dim() != 3:
        raise ValueError(f"inputs_embeds: got shape {tuple(inputs_embeds.shape)}, want (B, L, D)")
    if newline not in NEWLINES:
        raise ValueError(f"newline: got {newline!r}, want one of {', '.join(NEWLINES)}")
    if padding_side not in ("left", "right"):
        raise ValueError(f"padding_side: got {padding_side!r}, want 'left' or 'right'")
    batch, length, _ = inputs_embeds.shape
    if attention_mask is not None and attention_mask.shape != (batch, length):
        raise ValueError(f"attention_mask: got shape {tuple(attention_mask.shape)}, want (B, L) = {(batch, length)}")
    videos = _videos(inputs_embeds, video_spans, grid, newline, saliency, frame_features)
    if all(_keeps_everything(video.grid, config) for video in videos):
        return inputs_embeds, _nothing_pruned(inputs_embeds, videos, config, attention_mask)

    pruned = [_prune(inputs_embeds, video, newline, config) for video in videos]
    rows = [
        _Row(inputs_embeds[row], [part for part in pruned if part.video.row == row], _mask_row(attention_mask, row))
        for row in range(batch)
    ]
    known = config.exact_count and newline in ("none", "one") and (attention_mask is None or attention_mask.is_cpu)
    if fixed_length:
        counts = [len(row.columns) for row in rows]
    elif known:
        counts = [row.known_count for row in rows]
    else:
        found = [(row.columns >= 0).sum() for row in rows] + [part.frame_counts.sum() for part in pruned]
        counts = torch.stack(found).tolist()
        for part, kept in zip(pruned, counts[batch:]):
            part.indices = part.indices[:kept]
        counts = counts[:batch]
    arranged = [row.arranged(count, max(counts), padding_side) for row, count in zip(rows, counts)]
    embeddings, columns = (torch.stack(parts) for parts in zip(*arranged))
    padded = min(counts) < max(counts) or (fixed_length and not (known and attention_mask is None))
    return embeddings, PromptPruning(columns, length, tuple(part.report(config) for part in pruned), padded)


@dataclasses.dataclass
class _Video:
    """One video of a prompt; ``columns`` is (start, stop), or a tensor on the host where it is not one run."""

    row: int
    columns: tuple[int, int] | Tensor
    grid: Grid
    tokens: Tensor
    saliency: Tensor
    frame_features: Tensor


@dataclasses.dataclass
class _Pruned:
    """The rows that are kept of a video, and the columns they come from, -1 for those that are not there."""

    video: _Video
    rows: Tensor
    columns: Tensor
    indices: Tensor
    frame_counts: Tensor

    def report(self, config: PruneConfig) -> VideoPruning:
        video = self.video
        return VideoPruning(video.row, video.grid, self.indices, self.frame_counts, video.frame_features, config)


class _Row:
    """One row of the batch: its candidates for the pruned prompt in no order, -1 for what is not kept."""

    def __init__(self, embeddings: Tensor, pruned: list[_Pruned], mask: Tensor | None) -> None:
        self.length = len(embeddings)
        text = _complement([part.video.columns for part in pruned], self.length, embeddings.device)
        text_rows = embeddings[text]
        self.known_count = len(text) + sum(len(part.columns) for part in pruned)
        if mask is not None:
            if mask.is_cpu:
                self.known_count -= int((~mask).sum())
            text = torch.where(mask.to(text.device, non_blocking=True)[text], text, -1)
        self.rows = torch.cat([text_rows, *(part.rows for part in pruned)])
        self.columns = torch.cat([text, *(part.columns for part in pruned)])

    def arranged(self, count: int, length: int, padding_side: str) -> tuple[Tensor, Tensor]:
        """The last (left) or first (right) ``count`` candidates in order, padded to ``length``: rows and columns."""
        left = padding_side == "left"
        last = -1 if left else self.length  # where the order puts what is not kept
        columns, order = torch.where(self.columns < 0, last, self.columns).sort()
        kept = slice(len(order) - count, None) if left else slice(count)
        columns, order = columns[kept], order[kept]
        padding = (length - count, 0) if left else (0, length - count)
        columns = F.pad(torch.where(columns == last, -1, columns), padding, value=-1)
        # Padding holds the first candidate, not zeros: transformers 4 takes slots of zeros for free ones.
        return self.rows[torch.where(columns < 0, 0, F.pad(order, padding))], columns


def _mask_row(attention_mask: Tensor | None, row: int) -> Tensor | None:
    return None if attention_mask is None else attention_mask[row].bool()


def _keeps_everything(grid: Grid, config: PruneConfig) -> bool:
    frames, height, width = grid
    return frames == 0 or retained_count(1, height * width, config) == height * width


def _nothing_pruned(
    inputs_embeds: Tensor, videos: Sequence[_Video], config: PruneConfig, attention_mask: Tensor | None
) -> PromptPruning:
    batch, length, _ = inputs_embeds.shape
    columns = torch.arange(length, device=inputs_embeds.device).expand(batch, -1)
    if attention_mask is not None:
        columns = torch.where(attention_mask.to(columns.device).bool(), columns, -1)
    kept = []
    for video in videos:
        frames, count, _ = video.tokens.shape
        indices = torch.arange(frames * count, device=columns.device)
        frame_counts = torch.full((frames,), count, dtype=torch.int32, device=columns.device)
        kept.append(VideoPruning(video.row, video.grid, indices, frame_counts, video.frame_features, config))
    return PromptPruning(columns, length, tuple(kept), padded=attention_mask is not None)


def _prune(inputs_embeds: Tensor, video: _Video, newline: str, config: PruneConfig) -> _Pruned:
    rows, indices, frame_counts = torch.ops.fastvid.prune_padded(
        video.tokens, video.saliency, video.frame_features, **config.to_kwargs()
    )
    frames, height, width = video.grid
    # A newline token stands behind each group of tokens.
    group = {"none": None, "one": frames * height * width, "grid": width, "frame": height * width}[newline]
    offsets = indices if group is None or newline == "one" else indices + indices // group
    if group is not None:
        groups = frames * height * width // group
        behind = torch.arange(groups, device=indices.device) * (group + 1) + group
        rows = torch.cat([rows, _take(inputs_embeds, video, behind)])
        if newline != "one":
            alive = torch.zeros(groups + 1, dtype=torch.bool, device=indices.device)
            # -1, which is no token, lands in the group past the last.
            alive.index_fill_(0, torch.where(indices < 0, groups, indices // group), True)
            behind = torch.where(alive[:-1], behind, -1)
        offsets = torch.cat([torch.where(indices < 0, -1, offsets), behind])
    return _Pruned(video, rows, _to_columns(video, offsets), indices, frame_counts)


def _to_columns(video: _Video, offsets: Tensor) -> Tensor:
    """Columns of the prompt, from places among the columns of the video; -1 stays."""
    if isinstance(video.columns, Tensor):
        columns = video.columns.to(offsets.device, non_blocking=True)[offsets.clamp_min(0)]
    else:
        columns = offsets + video.columns[0]
    return torch.where(offsets < 0, -1, columns)


def _take(inputs_embeds: Tensor, video: _Video, offsets: Tensor) -> Tensor:
    return inputs_embeds[video.row][_to_columns(video, offsets)]


def _complement(taken: Sequence[tuple[int, int] | Tensor], length: int, device: torch.device) -> Tensor:
    """The columns of a row that no video takes, ascending."""
    if any(isinstance(columns, Tensor) for columns in taken):
        free = torch.ones(length, dtype=torch.bool)
        for columns in taken:
            free[columns if isinstance(columns, Tensor) else slice(*columns)] = False
        return free.nonzero().flatten().to(device, non_blocking=True)
    ends = [0, *(column for columns in sorted(taken) for column in columns), length]
    # Made on the device, since a CUDA graph cannot copy from the host.
    return torch.cat([torch.arange(*gap, device=device) for gap in zip(ends[::2], ends[1::2])])


def _videos(
    inputs_embeds: Tensor,
    video_spans: Sequence[tuple[int, int, int] | tuple[int, Tensor]],
    grid: Grid | Sequence[Grid],
    newline: str,
    saliency: str | Tensor | Sequence[Tensor],
    frame_features: Tensor | Sequence[Tensor] | None,
) -> list[_Video]:
    """The arguments by video, each checked."""
    count = len(video_spans)
    grids = _grids(grid, count)
    if isinstance(saliency, str) and saliency != "norm":
        raise ValueError(f"saliency: got {saliency!r}, want 'norm' or one tensor for each video")
    saliencies = [None] * count if isinstance(saliency, str) else _by_video("saliency", saliency, count)
    features = [None] * count if frame_features is None else _by_video("frame_features", frame_features, count)
    taken = torch.zeros(inputs_embeds.shape[:2], dtype=torch.bool)
    videos = []
    for number, span in enumerate(video_spans):
        name, shape = f"video_spans[{number}]", grids[number]
        row, columns = _checked_span(name, span, inputs_embeds)
        block = columns if isinstance(columns, Tensor) else slice(*columns)
        if taken[row, block].any():
            raise ValueError(f"{name}: got columns that another video takes")
        taken[row, block] = True
        tokens = _tokens(name, inputs_embeds[row, block], shape, newline)
        wanted = tokens.shape[:2]
        if saliencies[number] is not None and saliencies[number].shape != wanted:
            raise ValueError(
                f"saliency: got shape {tuple(saliencies[number].shape)} for {name}, want (T, N) = {tuple(wanted)}"
            )
        if features[number] is not None and (features[number].dim() != 2 or len(features[number]) != shape[0]):
            raise ValueError(
                f"frame_features: got shape {tuple(features[number].shape)} for {name}, want (T, C) = ({shape[0]}, any)"
            )
        weights = norm_saliency(tokens) if saliencies[number] is None else saliencies[number].to(tokens.device)
        if features[number] is None:
            compared = tokens.mean(1, dtype=torch.promote_types(tokens.dtype, torch.float32))
        else:
            compared = features[number].to(tokens.device)
        videos.append(_Video(row, columns, shape, tokens, weights, compared))
    return videos


def _grids(grid: Grid | Sequence[Grid], count: int) -> list[Grid]:
    grids = [grid] * count if len(grid) == 3 and isinstance(grid[0], int) else list(grid)
    if len(grids) != count:
        raise ValueError(f"grid: got {len(grids)} for {count} videos, want one for all or one for each")
    for shape in grids:
        if len(shape) != 3 or shape[0] < 0 or min(shape[1:]) < 1:
            raise ValueError(f"grid: got {tuple(shape)}, want (T, H, W) frames and rows and columns of tokens")
    return [tuple(int(size) for size in shape) for shape in grids]


def _by_video(name: str, values: Tensor | Sequence[Tensor], count: int) -> list[Tensor]:
    values = [values] if isinstance(values, Tensor) else list(values)
    if len(values) != count:
        raise ValueError(f"{name}: got {len(values)} for {count} videos, want one for each")
    return values


def _checked_span(
    name: str, span: tuple[int, int, int] | tuple[int, Tensor], inputs_embeds: Tensor
) -> tuple[int, tuple[int, int] | Tensor]:
    batch, length, _ = inputs_embeds.shape
    row, *columns = span
    if not 0 <= row < batch:
        raise ValueError(f"{name}: got row {row}, want a row of inputs_embeds, 0 to {batch - 1}")
    if len(columns) == 2:
        start, stop = columns
        if not 0 <= start <= stop <= length:
            raise ValueError(f"{name}: got columns {start} to {stop}, want a range within 0 to {length}")
        return row, (start, stop)
    [columns] = columns
    columns = torch.as_tensor(columns, dtype=torch.int64).cpu()
    ascending = columns.dim() == 1 and bool((columns.diff() > 0).all())
    if not ascending or (len(columns) and not 0 <= columns[0] <= columns[-1] < length):
        raise ValueError(f"{name}: got columns {columns.tolist()}, want them ascending within 0 to {length - 1}")
    return row, columns


def _tokens(name: str, block: Tensor, grid: Grid, newline: str) -> Tensor:
    """(T, N, D) tokens of a video, without its newline tokens, from the embeddings of its columns."""
    frames, height, width = grid
    newlines = num_newlines(grid, newline)
    if len(block) != frames * height * width + newlines:
        raise ValueError(
            f"{name}: got {len(block)} columns, want {frames * height * width + newlines}: "
            f"T * H * W = {frames} * {height} * {width} tokens and {newlines} newlines (newline={newline!r})"
        )
    if newline == "frame":
        return block.unflatten(0, (frames, height * width + 1))[:, :-1]
    if newline == "grid":
        return block.unflatten(0, (frames, height, width + 1))[:, :, :-1].flatten(1, 2)
    return block[: len(block) - newlines].unflatten(0, (frames, height * width))
