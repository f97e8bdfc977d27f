"""LLaVA-Video-7B, which has no class in transformers: pruning by ``prune_embeddings`` in a forward of its own."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastvid_ext
from fastvid_ext import PromptPruning, PruneConfig
from fastvid_ext.models.saliency import PoolingHead

from .build import TEXT_BEFORE, Layout

__all__ = ["LlavaVideo"]


class LlavaVideo:
    """LLaVA-OneVision's modules in LLaVA-Video's layout: average pooling to 13 x 13, a newline behind each row."""

    def __init__(self, model: nn.Module, layout: Layout, head: nn.Module) -> None:
        self.model, self.layout = model.model, layout
        self.output = model.lm_head
        self.head = PoolingHead(head, model.model.vision_tower)
        self.config: PruneConfig | None = None
        self.mark: Callable[[str], None] = lambda phase: None
        self.last: PromptPruning | None = None

    @contextlib.contextmanager
    def pruned(self, config: PruneConfig | None, clock: Any) -> Iterator[Callable[[], int | None]]:
        """In it, passes are pruned and mark the clock before and behind the pruning; gives the tokens kept."""
        self.config, self.mark, self.last = config, clock.mark, None
        yield lambda: None if self.last is None else self.last.videos[0].tokens_after
        self.config = None

    def prefill(self, inputs: dict[str, Tensor]) -> Any:
        self.last = None
        pixels = inputs["pixel_values_videos"]
        batch, frames = pixels.shape[:2]
        vision = self.model.vision_tower(pixels.flatten(0, 1), output_hidden_states=True)
        hidden = vision.hidden_states[-1]
        tokens = _pooled(self.model.multi_modal_projector(hidden)).unflatten(0, (batch, frames))
        newline = self.model.image_newline.to(tokens).expand(*tokens.shape[:3], 1, -1)
        block = torch.cat([tokens, newline], 3).flatten(1, 3)  # a newline behind each row
        embeddings = self.model.get_input_embeddings()(inputs["input_ids"])
        start, stop = TEXT_BEFORE, TEXT_BEFORE + block.shape[1]
        embeddings[:, start:stop] = block
        positions = torch.arange(embeddings.shape[1], device=embeddings.device)[None]
        if self.config is not None:
            saliency, features = self.head(hidden)
            side = math.isqrt(saliency.shape[1])
            saliency = _pooled(saliency.unflatten(1, (side * side, 1))).flatten(1)
            self.mark("prune")
            embeddings, self.last = fastvid_ext.prune_embeddings(
                embeddings,
                [(row, start, stop) for row in range(batch)],
                grid=self.layout.grid,
                newline="grid",
                saliency=saliency.split(frames),
                frame_features=features.split(frames),
                config=self.config,
            )
            positions = self.last.gather(positions)
        mask = None if self.last is None or not self.last.padded else self.last.mask.long()
        self.mark("prefill")
        output = self.model.language_model(
            inputs_embeds=embeddings, position_ids=positions, attention_mask=mask, use_cache=True
        )
        output.logits = self.output(output.last_hidden_state[:, -1:])
        return output

    def decode(self, token: Tensor, cache: Any) -> Any:
        length = TEXT_BEFORE + cache.get_seq_length()
        position = torch.tensor([[length]], device=token.device)
        hidden = self.model.language_model(input_ids=token, past_key_values=cache, position_ids=position)
        return self.output(hidden.last_hidden_state)


def _pooled(x: Tensor) -> Tensor:
    """(T, S * S, D) to (T, S // 2, S // 2, D)."""
    side = math.isqrt(x.shape[1])
    return F.avg_pool2d(x.unflatten(1, (side, side)).permute(0, 3, 1, 2), 2).permute(0, 2, 3, 1)
