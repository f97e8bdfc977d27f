"""Pruning inside the video models of transformers, which is imported only to load a checkpoint that is asked for."""

from __future__ import annotations

from torch import nn

from ..config import PruneConfig
from .families import FAMILIES
from .handle import Handle, find_inner

__all__ = ["Handle", "enable"]


def enable(model: nn.Module, config: PruneConfig | None = None, *, saliency: str | nn.Module | None = None) -> Handle:
    """Prune the videos of every prompt that the model is given, before its language model sees them.

    From then on a forward pass or `generate` with a video prunes it; prompts without a video, and all that is not a
    video's token, are untouched. Kept tokens keep their positions. What torch.compile made before is compiled again.

    Args:
        model: LlavaOnevisionForConditionalGeneration, Qwen2VLForConditionalGeneration,
            Qwen2_5_VLForConditionalGeneration or Qwen3VLForConditionalGeneration of transformers >= 4.57, or the model
            inside of one.
        config: the parameters; None: those of the official code for this model, with its retention ratio of 0.1.
        saliency: what the tokens are ranked by. None: as the official code does, by the attention of SigLIP's pooling
            head for LLaVA-OneVision, by that of each frame's mean query in the vision tower's last block for Qwen.
            "norm": by the lengths of the tokens, for any model. For LLaVA-OneVision, whose checkpoints leave the
            pooling head out, also a SiglipVisionModel, its pooling head, or the name of the checkpoint to load it from.

    Returns:
        Handle: ``last`` tells what the last prompt kept, ``disable()`` ends it, as does leaving it as a context.

    Raises:
        ValueError: an unsupported model, a model that is enabled already, or no pooling head where one is needed.
        TypeError: an argument of a wrong type.
    """
    if config is not None and not isinstance(config, PruneConfig):
        raise TypeError(f"config: got {config!r}, want a PruneConfig or None")
    inner, family = find_inner(model, FAMILIES)
    return Handle(model, inner, family(inner, saliency), config)
