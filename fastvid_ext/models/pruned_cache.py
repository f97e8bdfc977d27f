"""What later calls have to know of a pruned prompt, noted on the key-value cache that holds it.

Callers, `generate` among them, go on counting the columns of the unpruned prompt. The cache holds fewer, so their masks
and cache positions are translated; position ids stay, since kept tokens keep theirs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..prompt import PromptPruning

__all__ = ["Prefill", "PrunedPrompt", "cache_of", "cached_length", "note", "noted"]

Call = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class PrunedPrompt:
    """The slots that a pruned prompt takes in a cache.

    Attributes:
        kept: (B, S) bool, False at padding.
        columns: columns of the unpruned prompt.
        next_position: (..., B or 1, 1) position id of the token behind it, where the caller gives none.
        next_text_position: (B or 1, 1) the same as `generate` numbers the columns, from the ids that it gave; or None.
        padded: whether any slot may be padding.
    """

    kept: Tensor
    columns: int
    next_position: Tensor
    next_text_position: Tensor | None
    padded: bool

    def grown(self, call: Call) -> Call | None:
        """The arguments of a call of the model that goes on behind the prompt; None where the cache was emptied."""
        cache = cache_of(call)
        tokens = call.get("input_ids") if call.get("input_ids") is not None else call["inputs_embeds"]
        count = tokens.shape[1]
        length = cached_length(cache)
        if count > 1 and int(length) == 0:
            note(cache, None)
            return None
        behind = length - self.kept.shape[1]
        if count > 1 and self._overlaps(call, behind):
            raise ValueError(
                f"{_cache_name(call)}: got tokens that it holds already. It holds a prompt that was pruned from "
                f"{self.columns} to {self.kept.shape[1]} columns, by whose length the new tokens cannot be cut; want "
                "input_ids of the new tokens alone, and an attention_mask of all columns, the pruned ones included"
            )
        if call.get("position_ids") is None:
            new = torch.arange(count, device=self.next_position.device)
            call = call | {"position_ids": self.next_position + behind + new}
        if call.get("cache_position") is not None:
            call = call | {"cache_position": length + torch.arange(count, device=call["cache_position"].device)}
        mask = call.get("attention_mask")
        if mask is None and not self.padded:
            return call
        seen = self.kept
        if isinstance(mask, Tensor) and mask.dim() == 2:
            seen = torch.cat([seen, mask[:, self.columns :].to(seen.device, torch.bool)], 1)
        # Slots that are yet to be filled may be unmasked: causality hides them. So a static cache gets masks of one
        # shape, which is what compiled decoding asks for.
        slots = _static_length(cache) or int(length) + count
        return call | {"attention_mask": torch.nn.functional.pad(seen, (0, slots - seen.shape[1]), value=True).long()}

    def _overlaps(self, call: Call, behind: int | Tensor) -> bool:
        """Whether the call's first token is one that the cache holds, as `generate` numbers them."""
        positions, column = call.get("position_ids"), call.get("cache_position")
        text = _text_positions(positions)
        if text is not None and self.next_text_position is not None:
            return bool((text[:, :1] < self.next_text_position + behind).any())
        if positions is not None and positions.dim() == 3 and len(positions) == 1:  # columns with the rope's deltas
            return bool((positions[0, :, :1] < self.next_position[-1] + behind).any())
        return column is not None and bool(column[0] < self.columns + behind)


class Prefill:
    """A pruned prompt on its way into a cache.

    Args:
        pruning: of the prompt.
        call: the arguments of the language model.
        cached: slots of the cache that are taken already.
    """

    def __init__(self, pruning: PromptPruning, call: Call, cached: int) -> None:
        cache, mask = cache_of(call), call.get("attention_mask")
        self.positions, self.cached = call.get("position_ids"), cached
        self.columns, self.padded = cached, pruning.padded
        batch, count = pruning.columns.shape
        self.shape, self.device = (batch, cached + count), pruning.columns.device
        self._seen: list[Tensor] = []
        if cached:
            before = noted(cache)
            if before is not None:
                self.columns += before.columns - before.kept.shape[1]
                self.padded |= before.padded
                seen = torch.nn.functional.pad(before.kept, (0, cached - before.kept.shape[1]), value=True)
            elif isinstance(mask, Tensor) and mask.dim() == 2:
                seen = mask[:, :cached].to(self.device, torch.bool)
                self.padded = True
            else:
                seen = torch.ones(batch, cached, dtype=torch.bool, device=self.device)
            self._seen = [seen]
        self._first, self._pruning = self.columns, pruning
        self.columns += pruning.length_before

    def changed(self, call: Call) -> Call:
        """Those arguments of the language model that change, embeddings aside."""
        if self.positions is not None:
            positions = self._pruning.gather(self.positions)
        else:  # the numbers of the columns
            columns = self._pruning.columns
            positions = columns.clamp_min(0) if self._pruning.padded else columns
            if self._first:
                positions = positions + self._first
        changed: Call = {"position_ids": positions}
        if call.get("cache_position") is not None:
            changed["cache_position"] = torch.arange(self.cached, self.shape[1], device=self.device)
        # Without a mask and a cache, gaps in the position ids would be taken for borders of packed sequences.
        mask = call.get("attention_mask")
        if mask is None and not self.padded and cache_of(call) is not None:
            changed["attention_mask"] = None
        elif isinstance(mask, Tensor) and mask.dim() == 2 and not self.padded:
            changed["attention_mask"] = mask[:, : self.shape[1]]  # as good as any: it masks nothing
        else:
            changed["attention_mask"] = self._kept(torch.long)
        return changed

    def _kept(self, dtype: torch.dtype) -> Tensor:
        """(B, S) zero at padding."""
        if not self.padded:
            return torch.ones(self.shape, dtype=dtype, device=self.device)
        return torch.cat([*self._seen, self._pruning.mask], 1).to(dtype)

    def noted(self, rope_deltas: Tensor | None) -> PrunedPrompt:
        """What the cache has to know, made when the language model has been launched.

        Args:
            rope_deltas: (B, 1) what M-RoPE adds to the column of a token behind the prompt; None without M-RoPE.
        """
        next_position = torch.full((1, 1), self.columns, device=self.device)
        if rope_deltas is not None:
            repeats = self.shape[0] // len(rope_deltas)
            deltas = rope_deltas.to(self.device).repeat_interleave(repeats, 0)
            next_position = (next_position + deltas).expand(3, -1, -1)
        text = _text_positions(self.positions)
        next_text = None if text is None else text.amax(-1, keepdim=True) + 1
        return PrunedPrompt(self._kept(torch.bool), self.columns, next_position, next_text, self.padded)


def _text_positions(position_ids: Tensor | None) -> Tensor | None:
    """(B, L) the positions without M-RoPE, which `generate` puts before the three of M-RoPE; None where not given."""
    if position_ids is None or position_ids.dim() == 2:
        return position_ids
    return position_ids[0] if position_ids.shape[0] == 4 else None


def _cache_name(call: Mapping[str, Any]) -> str:
    """What transformers calls a cache: `past_key_values`, from 5.24 on `cache`, while it still takes the other."""
    return "cache" if call.get("cache") is not None else "past_key_values"


def cache_of(call: Mapping[str, Any]) -> Any:
    """The cache among the arguments or the outputs of a model; None where there is none."""
    return call.get(_cache_name(call))


def note(cache: Any, prompt: PrunedPrompt | None) -> None:
    """On the cache itself, so that it lives and is copied with it."""
    if cache is not None:
        cache.fastvid = prompt


def noted(cache: Any) -> PrunedPrompt | None:
    return getattr(cache, "fastvid", None)


def cached_length(cache: Any) -> int | Tensor:
    return 0 if cache is None else cache.get_seq_length()


def _static_length(cache: Any) -> int | None:
    """Slots of a static cache; None for one that grows."""
    return max(layer.max_cache_len for layer in cache.layers) if getattr(cache, "is_compileable", False) else None
