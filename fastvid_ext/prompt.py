"""Prunes the videos inside the embeddings of a prompt, for use in any model's forward."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from .budgets import KeptCounts
from .config import PruneConfig, retained_count
from .prompt_layout import Grid, PromptLayout, VideoSpan
from .prompt_order import arrange, video_part, with_newlines

__all__ = ["PlacedPruning", "PromptPruning", "VideoPruning", "mean_features", "norm_saliency", "prune_embeddings"]


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
    return PlacedPruning(layout, ranked_by, compared_by, config)(inputs_embeds)


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


class PlacedPruning:
    """A pruning of videos whose places are known. All that needs no embeddings is done when it is made, which may be
    while the device is still busy with what they come from; the call is short.

    Args:
        layout: of the prompts.
        saliency: (T, N) of each video; None for "norm".
        frame_features: (T, C) of each video; None for the mean of each frame's tokens.
        config: the parameters.
    """

    def __init__(
        self,
        layout: PromptLayout,
        saliency: Sequence[Tensor] | None,
        frame_features: Sequence[Tensor] | None,
        config: PruneConfig,
    ) -> None:
        device = layout.columns.device
        self.layout, self.config = layout, config
        self._saliency = None if saliency is None else [ranked_by.to(device) for ranked_by in saliency]
        self._features = self._counts = None
        self._parameters = config.to_kwargs()
        self._keeps_everything = all(_keeps_everything(video, config) for video in layout.videos)
        self._has_groups = any(video.group for video in layout.videos)
        sure = config.exact_count and layout.attention_mask is None and not self._has_groups
        self._maybe_padded = layout.fixed_length and not sure
        if frame_features is not None:
            self._compare_by([compared_by.to(device) for compared_by in frame_features])

    def _compare_by(self, frame_features: list[Tensor]) -> None:
        self._features = frame_features
        if not self.layout.fixed_length and not self._keeps_everything:
            # Ahead of the pruning, so that its result can be arranged while the device still works on it.
            sizes = [video.tokens_per_frame for video in self.layout.videos]
            self._counts = KeptCounts(frame_features, sizes, self.config)

    def __call__(self, embeddings: Tensor) -> tuple[Tensor, PromptPruning]:
        """As :func:`prune_embeddings`, of embeddings (B, L, D)."""
        layout, saliency = self.layout, self._saliency
        videos = layout.videos
        tokens = [video.tokens(embeddings[video.row]) for video in videos]
        if self._features is None:
            self._compare_by([mean_features(x) for x in tokens])
        if self._keeps_everything:
            return embeddings, _nothing_pruned(layout, self._features, self.config)
        if saliency is None:
            saliency = [norm_saliency(x) for x in tokens]
        pruned = [
            torch.ops.fastvid.prune_padded(x, ranked_by, compared_by, **self._parameters)
            for x, ranked_by, compared_by in zip(tokens, saliency, self._features)
        ]
        if self._counts is not None:
            pruned = [
                (rows[:count], indices[:count], frame_counts)
                for (rows, indices, frame_counts), count in zip(pruned, self._counts.tolist())
            ]
        parts = [video_part(layout, video, rows, indices) for video, (rows, indices, _) in zip(videos, pruned)]
        if self._has_groups:
            parts = with_newlines(embeddings, layout, parts, [indices for _, indices, _ in pruned])
        arranged, columns, padded = arrange(embeddings, layout, parts)
        reports = tuple(
            VideoPruning(video.row, video.grid, indices, frame_counts, compared_by, self.config)
            for video, (_, indices, frame_counts), compared_by in zip(videos, pruned, self._features)
        )
        return arranged, PromptPruning(columns, layout.length, reports, padded or self._maybe_padded)


def _keeps_everything(video: VideoSpan, config: PruneConfig) -> bool:
    return video.grid[0] == 0 or retained_count(1, video.tokens_per_frame, config) == video.tokens_per_frame


def _nothing_pruned(layout: PromptLayout, frame_features: Sequence[Tensor], config: PruneConfig) -> PromptPruning:
    device = layout.columns.device
    reports = []
    for video, compared_by in zip(layout.videos, frame_features):
        frames, count = video.grid[0], video.tokens_per_frame
        indices = torch.arange(frames * count, device=device)
        frame_counts = torch.full((frames,), count, dtype=torch.int32, device=device)
        reports.append(VideoPruning(video.row, video.grid, indices, frame_counts, compared_by, config))
    padded = layout.attention_mask is not None
    return PromptPruning(layout.columns_present(), layout.length, tuple(reports), padded)
