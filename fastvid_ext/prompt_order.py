"""The kept tokens of the videos and the text around them, put in order."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .prompt_layout import PromptLayout, VideoSpan

__all__ = ["HostCopy", "Part", "arrange", "kept_columns", "with_newlines"]

# Embeddings (n, D) and the columns (n,) that they come from.
Part = tuple[Tensor, Tensor]


class HostCopy:
    """A tensor on its way to the host. Only :meth:`tolist` waits, for what stands before the copy and no more."""

    def __init__(self, values: Tensor) -> None:
        self._values = values.to("cpu", non_blocking=True)
        self._arrived = torch.cuda.current_stream(values.device).record_event() if values.is_cuda else None

    def tolist(self) -> list[int]:
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._values.tolist()


def kept_columns(layout: PromptLayout, video: VideoSpan, indices: Tensor) -> Tensor:
    """(n,) the columns of the tokens of these numbers. What those of -1 get means nothing, but is -1 in a prompt that
    is to be sorted.
    """
    offsets = video.offsets(indices)
    if layout.sorted:
        return torch.where(indices < 0, -1, video.columns.index_select(0, offsets.clamp_min(0)))
    return offsets + video.place.start


def with_newlines(embeddings: Tensor, video: VideoSpan, rows: Tensor, columns: Tensor, indices: Tensor) -> Part:
    """The rows (n, D) and columns (n,) of a video and of its newline tokens; -1 is the column of those behind whose
    group no token is kept.
    """
    newlines = video.newlines(video.columns)
    # An index of -1 is of no group: it lands behind the last one.
    groups = torch.where(indices < 0, len(newlines), video.groups(indices))
    alive = torch.zeros(len(newlines) + 1, dtype=torch.bool, device=rows.device).index_fill_(0, groups, True)
    columns = torch.cat([columns, torch.where(alive[:-1], newlines, -1)])
    return torch.cat([rows, video.newlines(embeddings[video.row, video.place])]), columns


def arrange(embeddings: Tensor, layout: PromptLayout, videos: Sequence[Part]) -> tuple[Tensor, Tensor, bool]:
    """Embeddings (B, K, D), their columns (B, K), -1 at padding, and whether there is any that the host knows of.

    Args:
        embeddings: (B, L, D).
        layout: of the prompts.
        videos: what is kept of each; with newline tokens or a fixed length, columns are -1 for what is not there after
            all.
    """
    left = layout.padding_side == "left"
    prompts = [
        [videos[part] if isinstance(part, int) else (own[part.place], part.columns) for part in parts]
        for own, parts in zip(embeddings.unbind(), layout.rows)
    ]
    lengths = [sum(len(columns) for _, columns in parts) for parts in prompts]
    longest = max(lengths)
    for row, (parts, length) in enumerate(zip(prompts, lengths)):
        if length < longest:
            # Padding holds an embedding, not zeros: transformers 4 takes slots of zeros for free ones.
            some = next((part for part, _ in parts if len(part)), embeddings[row])
            padding = some[:1].expand(longest - length, -1), layout.columns.new_full((longest - length,), -1)
            parts.insert(0 if left else len(parts), padding)
    places = torch.cat([columns for parts in prompts for _, columns in parts]).view(len(prompts), longest)
    gathered = torch.cat([part for parts in prompts for part, _ in parts]).view(len(prompts), longest, -1)
    if not layout.sorted:
        return gathered, places, min(lengths) < longest
    present = HostCopy((places >= 0).sum(1)) if layout.has_groups and not layout.fixed_length else None
    places, order = (places if left else torch.where(places < 0, layout.length, places)).sort(1)
    absent = places < 0 if left else places == layout.length
    order = torch.where(absent, order[:, -1:] if left else order[:, :1], order)
    places = torch.where(absent, -1, places)
    gathered = gathered.gather(1, order[..., None].expand(gathered.shape))
    if present is None:
        return gathered, places, min(lengths) < longest
    # Only now, when all is under way, so that the device does not wait for what is done behind.
    lengths = present.tolist()
    kept = slice(longest - max(lengths), None) if left else slice(max(lengths))
    return gathered[:, kept].contiguous(), places[:, kept], min(lengths) < max(lengths)
