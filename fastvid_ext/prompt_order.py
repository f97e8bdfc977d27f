"""The kept tokens of the videos and the text around them, put in order."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .budgets import HostCopy
from .prompt_layout import PromptLayout, VideoSpan

__all__ = ["arrange", "video_part", "with_newlines"]

# Embeddings (n, D) and the columns (n,) that they come from; -1 for those that are not there after all, which are
# found with a fixed length alone.
Part = tuple[Tensor, Tensor]


def video_part(layout: PromptLayout, video: VideoSpan, rows: Tensor, indices: Tensor) -> Part:
    """The kept tokens of a video, from its rows and indices as ``torch.ops.fastvid.prune_padded`` gives them."""
    if layout.fixed_length:
        offsets = video.offsets(indices).clamp_min(0)
        return rows, torch.where(indices < 0, -1, video.columns.index_select(0, offsets))
    if isinstance(video.place, slice):
        return rows, video.offsets(indices) + video.place.start
    return rows, video.columns.index_select(0, video.offsets(indices))


def with_newlines(
    embeddings: Tensor, layout: PromptLayout, parts: Sequence[Part], indices: Sequence[Tensor]
) -> list[Part]:
    """The parts of the videos with those newline tokens behind whose group a token is kept."""
    newlines = [video.newlines(video.columns) for video in layout.videos]
    alive = []
    for video, own, kept in zip(layout.videos, newlines, indices):
        flags = torch.zeros(len(own) + 1, dtype=torch.bool, device=own.device)
        # An index of -1 is of no group: it lands behind the last one.
        flags.index_fill_(0, torch.where(kept < 0, len(own), video.groups(kept)), True)
        alive.append(flags[:-1])
    # First of all, so that the host knows it while the device still puts the rows in order.
    counts = None if layout.fixed_length else HostCopy(torch.stack([flags.sum() for flags in alive]))
    merged = []
    absent = -1 if layout.fixed_length else layout.length
    for video, own, flags, (rows, columns) in zip(layout.videos, newlines, alive, parts):
        columns = torch.cat([columns, torch.where(flags, own, absent)])
        merged.append((torch.cat([rows, video.newlines(embeddings[video.row, video.place])]), columns))
    if counts is None:
        return merged
    ordered = [(rows, *columns.sort()) for rows, columns in merged]
    merged = [(rows.index_select(0, order), columns) for rows, columns, order in ordered]
    lengths = [len(kept) + count for kept, count in zip(indices, counts.tolist())]
    return [(rows[:length], columns[:length]) for (rows, columns), length in zip(merged, lengths)]


def arrange(embeddings: Tensor, layout: PromptLayout, videos: Sequence[Part]) -> tuple[Tensor, Tensor, bool]:
    """Embeddings (B, K, D), their columns (B, K), -1 at padding, and whether there is any that the host knows of.

    Args:
        embeddings: (B, L, D).
        layout: of the prompts.
        videos: what is kept of each.
    """
    left = layout.padding_side == "left"
    rows = [
        [videos[part] if isinstance(part, int) else (own[part.place], part.columns) for part in parts]
        for own, parts in zip(embeddings.unbind(), layout.rows)
    ]
    lengths = [sum(len(columns) for _, columns in parts) for parts in rows]
    longest = max(lengths)
    for row, (parts, length) in enumerate(zip(rows, lengths)):
        if length < longest:
            # Padding holds an embedding, not zeros: transformers 4 takes slots of zeros for free ones.
            some = next((part for part, _ in parts if len(part)), embeddings[row])
            padding = some[:1].expand(longest - length, -1), layout.columns.new_full((longest - length,), -1)
            parts.insert(0 if left else len(parts), padding)
    columns = torch.cat([columns for parts in rows for _, columns in parts]).view(len(rows), longest)
    gathered = torch.cat([part for parts in rows for part, _ in parts]).view(len(rows), longest, -1)
    padded = min(lengths) < longest
    if layout.fixed_length or not layout.ordered:
        columns, order = (columns if left else torch.where(columns < 0, layout.length, columns)).sort(1)
        absent = columns < 0 if left else columns == layout.length
        order = torch.where(absent, order[:, -1:] if left else order[:, :1], order)
        columns = torch.where(absent, -1, columns)
        gathered = gathered.gather(1, order[..., None].expand(gathered.shape))
    return gathered, columns, padded
