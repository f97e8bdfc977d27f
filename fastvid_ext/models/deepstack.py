"""DeepStack features (Qwen3-VL) follow their tokens: what merged into a centre merges in them too.

In plain PyTorch, since the op merges the tokens alone: centres and salient tokens are those that it chose, and the
assignment is computed again.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import reference
from ..budgets import budgets
from ..prompt import PromptPruning, VideoPruning, norm_saliency
from .layout import Span
from .pruned_cache import Call

__all__ = ["pruned_deepstack"]


@torch.no_grad()
def pruned_deepstack(
    embeddings: Tensor, spans: Sequence[Span], saliency: Sequence[Tensor | None], pruning: PromptPruning, call: Call
) -> Call:
    """``visual_pos_masks`` (B, K) and ``deepstack_visual_embeds``, a list of (kept visual tokens, D), for the prompt.

    Args:
        embeddings: (B, L, D) of the unpruned prompt.
        spans: columns of each video.
        saliency: (T, N) of each video; None for "norm".
        pruning: its result.
        call: the arguments of the language model, the unpruned ones.
    """
    visual = call["visual_pos_masks"].to(embeddings.device)
    place = (visual.flatten().cumsum(0) - 1).view(visual.shape)  # of each visual column among the features
    levels = [level.clone() for level in call["deepstack_visual_embeds"]]
    for number, (video, (row, *columns)) in enumerate(zip(pruning.videos, spans)):
        block = slice(*columns) if len(columns) == 2 else columns[0].to(embeddings.device)
        frames, height, width = video.grid
        tokens = embeddings[row, block].unflatten(0, (frames, height * width))
        given = saliency[number]
        ranked_by = norm_saliency(tokens) if given is None else given.to(tokens.device)
        places = place[row, block]
        centers, merged = _merged(video, tokens, ranked_by, [level[places] for level in levels])
        for level, values in zip(levels, merged):
            level[places[centers]] = values
    kept = pruning.gather(visual) & pruning.mask
    chosen = pruning.gather(place)[kept]
    return {"visual_pos_masks": kept, "deepstack_visual_embeds": [level[chosen] for level in levels]}


def _merged(
    video: VideoPruning, tokens: Tensor, saliency: Tensor, levels: Sequence[Tensor]
) -> tuple[Tensor, list[Tensor]]:
    """The centres of a video, as indices into its tokens, and the features of each level (T * N, D) merged there."""
    config, count = video.config, tokens.shape[1]
    segment_ids, num_salient, num_context = budgets(video.frame_features, count, config)
    salient = reference._descending_rank(saliency) < num_salient[:, None]
    context = torch.zeros_like(salient)
    context.view(-1)[video.indices] = True
    context &= ~salient
    centers: list[Tensor] = []
    merged: list[list[Tensor]] = [[] for _ in levels]
    for begin, end in reference._segment_bounds(segment_ids):
        unit = reference._unit(reference._accumulated(tokens[begin:end]).flatten(0, 1))
        mergeable = ~salient[begin:end].flatten()
        here = [reference._accumulated(level[begin * count : end * count]) for level in levels]
        for anchor in num_context[begin:end].nonzero().flatten().tolist():
            chosen = anchor * count + context[begin + anchor].nonzero().flatten()
            assignment = reference._assign(unit, chosen, mergeable, config.merge_centers)
            centers.append(begin * count + chosen)
            for values, level, parts in zip(here, levels, merged):
                parts.append(reference._average(values, chosen, assignment, config.merge_floor)[0].to(level.dtype))
    if not centers:
        return video.indices[:0], [level[:0] for level in levels]
    return torch.cat(centers), [torch.cat(parts) for parts in merged]
