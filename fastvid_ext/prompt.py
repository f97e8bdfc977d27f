"""Prunes the videos inside the embeddings of a prompt, for use in any model's forward."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from .config import PruneConfig, retained_count
from .prompt_layout import Grid, PromptLayout
from .prompt_order import HostCopy, Part, arrange, kept_columns, with_newlines

__all__ = [
    "PlacedPruning",
    "PromptPruning",
    "PrunedVideo",
    "VideoPruning",
    "mean_features",
    "norm_saliency",
    "prune_embeddings",
]


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
        return torch.ops.fastvid.segment(self.frame_features, **self.config.to_kwargs("segment"))[0]


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
        columns = (self.columns.clamp_min(0) if self.padded else self.columns).to(values.device)
        batch, kept = columns.shape
        shape = values.shape[:-2]
        return values.expand(*shape, batch, -1).gather(-1, columns.expand(*shape, batch, kept))


def norm_saliency(tokens: Tensor) -> Tensor:
    """(T, N) float32 lengths of the tokens (T, N, D): a saliency that asks nothing of the vision tower."""
    return torch.linalg.vector_norm(tokens, dim=-1, dtype=torch.promote_types(tokens.dtype, torch.float32))


def mean_features(tokens: Tensor) -> Tensor:
    """(T, D) float32 mean of each frame's tokens (T, N, D): the frame features where a model gives no others."""
    return tokens.mean(1, dtype=torch.promote_types(tokens.dtype, torch.float32))


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
    layout = PromptLayout(
        inputs_embeds.shape[:2],
        inputs_embeds.device,
        video_spans,
        grid=grid,
        newline=newline,
        attention_mask=attention_mask,
        padding_side=padding_side,
        fixed_length=fixed_length,
    )
    if isinstance(saliency, str) and saliency != "norm":
        raise ValueError(f"saliency: got {saliency!r}, want 'norm' or one tensor for each video")
    ranked_by = None if isinstance(saliency, str) else _by_video("saliency", saliency, layout)
    compared_by = None if frame_features is None else _by_video("frame_features", frame_features, layout)
    videos = [
        PrunedVideo(
            video.tokens(inputs_embeds[video.row]),
            None if ranked_by is None else ranked_by[number],
            None if compared_by is None else compared_by[number],
            config,
            fixed_length,
        )
        for number, video in enumerate(layout.videos)
    ]
    return PlacedPruning(layout, videos)(inputs_embeds)


def _by_video(name: str, values: Tensor | Sequence[Tensor], layout: PromptLayout) -> list[Tensor]:
    """The values of each video, checked."""
    values = [values] if isinstance(values, Tensor) else list(values)
    if len(values) != len(layout.videos):
        raise ValueError(f"{name}: got {len(values)} for {len(layout.videos)} videos, want one for each")
    for number, (value, video) in enumerate(zip(values, layout.videos)):
        frames, count = video.grid[0], video.tokens_per_frame
        if name == "saliency" and value.shape != (frames, count):
            raise ValueError(
                f"{name}: got shape {tuple(value.shape)} for video_spans[{number}], want (T, N) = {(frames, count)}"
            )
        if name == "frame_features" and (value.dim() != 2 or len(value) != frames):
            raise ValueError(
                f"{name}: got shape {tuple(value.shape)} for video_spans[{number}], want (T, C) = ({frames}, any)"
            )
    return values


class PrunedVideo:
    """A video, pruned before it is known where in a prompt it stands.

    Args:
        tokens: (T, N, D).
        saliency: (T, N); None for "norm".
        frame_features: (T, C); None for the mean of each frame's tokens.
        config: the parameters.
        fixed_length: never ask the device how many tokens are kept.

    Attributes:
        rows: (n, D) the kept tokens, as many as there may be.
        indices: (n,) int64, frame * N + token of each, -1 behind those that are kept.
        frame_counts, frame_features, config: as in :class:`VideoPruning`.
    """

    def __init__(
        self,
        tokens: Tensor,
        saliency: Tensor | None,
        frame_features: Tensor | None,
        config: PruneConfig,
        fixed_length: bool = False,
    ) -> None:
        (frames, size), device = tokens.shape[:2], tokens.device
        self.config = config
        self.frame_features = mean_features(tokens) if frame_features is None else frame_features.to(device)
        self._counts = None
        if _keeps_everything(frames, 1, size, config):
            self.rows = tokens.flatten(0, 1)
            self.indices = torch.arange(frames * size, device=device)
            self.frame_counts = torch.full((frames,), size, dtype=torch.int32, device=device)
            return
        ranked_by = norm_saliency(tokens) if saliency is None else saliency.to(device)
        self.rows, self.indices, self.frame_counts = torch.ops.fastvid.prune_padded(
            tokens, ranked_by, self.frame_features, **config.to_kwargs()
        )
        if not config.exact_count and not fixed_length:
            self._counts = HostCopy(self.frame_counts)

    @functools.cached_property
    def count(self) -> int:
        """How many of the rows are kept, as far as it may be asked for; waits for the device if it has to."""
        return len(self.rows) if self._counts is None else sum(self._counts.tolist())


class PlacedPruning:
    """The pruned videos of a prompt, in their places. What needs no embeddings is done when it is made, which may be
    while the device is still busy with the videos; the call is short.

    Args:
        layout: of the prompts.
        videos: its videos, pruned.
    """

    def __init__(self, layout: PromptLayout, videos: Sequence[PrunedVideo]) -> None:
        self._layout, self._videos = layout, videos
        self._columns = [kept_columns(layout, span, video.indices) for span, video in zip(layout.videos, videos)]
        self._keeps_everything = all(
            _keeps_everything(*span.grid, video.config) for span, video in zip(layout.videos, videos)
        )
        exact = all(video.config.exact_count for video in videos) and not layout.has_groups
        sure = self._keeps_everything or (exact and layout.attention_mask is None)
        self._may_be_padded = layout.fixed_length and not sure

    def __call__(self, embeddings: Tensor) -> tuple[Tensor, PromptPruning]:
        """As :func:`prune_embeddings`, of embeddings (B, L, D)."""
        layout = self._layout
        if self._keeps_everything:
            arranged, places, padded = embeddings, layout.columns_present(), layout.attention_mask is not None
        else:
            arranged, places, padded = arrange(embeddings, layout, self._parts(embeddings))
        reports = []
        for span, video in zip(layout.videos, self._videos):
            indices = video.indices[: video.count]
            reports.append(
                VideoPruning(span.row, span.grid, indices, video.frame_counts, video.frame_features, video.config)
            )
        return arranged, PromptPruning(places, layout.length, tuple(reports), padded or self._may_be_padded)

    def _parts(self, embeddings: Tensor) -> list[Part]:
        parts = []
        for span, video, columns in zip(self._layout.videos, self._videos, self._columns):
            rows = video.rows.to(embeddings)
            if span.group:
                parts.append(with_newlines(embeddings, span, rows, columns, video.indices))
            elif self._layout.fixed_length:
                parts.append((rows, columns))
            else:
                parts.append((rows[: video.count], columns[: video.count]))
        return parts


def _keeps_everything(frames: int, height: int, width: int, config: PruneConfig) -> bool:
    return frames == 0 or retained_count(1, height * width, config) == height * width
