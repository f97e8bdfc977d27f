"""The hooks on a model that is enabled."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
import torch._dynamo
from torch import Tensor, nn

from ..config import PruneConfig
from ..prompt import PlacedPruning, PromptPruning
from ..prompt_layout import PromptLayout
from .deepstack import pruned_deepstack
from .families import EncodedVideo, Family
from .layout import Span, placed
from .pruned_cache import Call, Prefill, cache_of, cached_length, note, noted

__all__ = ["Handle", "find_inner"]


def find_inner(model: nn.Module, families: dict[str, type]) -> tuple[nn.Module, type]:
    """The module that holds vision tower and language model, and its family."""
    for module in (model, getattr(model, "model", None)):
        for ancestor in type(module).__mro__:
            if ancestor.__name__ in families and hasattr(module, "language_model"):
                return module, families[ancestor.__name__]
    known = ", ".join(name.removesuffix("Model") + "ForConditionalGeneration" for name in families)
    raise ValueError(
        f"model: got {type(model).__name__}, want one of {known}; any other model can call "
        "fastvid_ext.prune_embeddings in its forward"
    )


class Handle:
    """Pruning that is enabled in a model; a context manager that disables it at its end.

    Attributes:
        config: the parameters.
        last: what the last prompt with a video kept; None before the first, and while the next is encoded.
    """

    def __init__(self, model: nn.Module, inner: nn.Module, family: Family, config: PruneConfig | None) -> None:
        language_model = inner.language_model
        for hook in language_model._forward_pre_hooks.values():
            if isinstance(getattr(hook, "__self__", None), Handle):
                raise ValueError("model: got one that is enabled already, want it disabled first (handle.disable())")
        self.config = family.preset() if config is None else config
        self.last: PromptPruning | None = None
        self._inner, self._family = inner, family
        self._encoded: list[EncodedVideo] | None = None
        family.ready = self._prune
        self._parameters = list(inspect.signature(inner.forward).parameters)
        self._prompt: _Prompt | None = None
        self._pending: Prefill | None = None
        # By default compiled code is shared by modules of one class, hooks or not, and keeps those it was made with.
        torch._dynamo.config.skip_nnmodule_hook_guards = False
        self._hooks = [
            inner.register_forward_pre_hook(self._begin, with_kwargs=True),
            language_model.register_forward_pre_hook(self._replace, with_kwargs=True),
            language_model.register_forward_hook(self._note),
            *family.hooks(),
            _Encoder(inner, self),
            inner.register_forward_hook(self._end, always_call=True),
        ]
        if model is not inner:
            self._hooks.append(model.register_forward_pre_hook(self._refuse_labels, with_kwargs=True))

    def disable(self) -> None:
        """Give the model back as it was. Does nothing the second time."""
        while self._hooks:
            self._hooks.pop().remove()
        self._family.ready = None  # or the garbage collector would have to find the two of them

    def __enter__(self) -> Handle:
        return self

    def __exit__(self, *error: object) -> None:
        self.disable()

    def __repr__(self) -> str:
        state = "enabled" if self._hooks else "disabled"
        return f"<fastvid_ext pruning, {state} in {type(self._inner).__name__}, {self.config}>"

    # A compiler cannot look into the hooks, which decide by values; it breaks its graph at each of them.
    @torch.compiler.disable
    def _refuse_labels(self, module: nn.Module, args: tuple, kwargs: Call) -> None:
        if kwargs.get("labels") is not None and _has_video(kwargs):
            raise ValueError(
                "labels: got labels for a prompt with a video, whose pruning changes its length; want none, or the "
                "pruning disabled"
            )

    @torch.compiler.disable
    def _begin(self, module: nn.Module, args: tuple, kwargs: Call) -> tuple[tuple, Call] | None:
        """Before the model: read the layout of a prompt back while the device is idle, or go on behind a pruned one."""
        self._prompt = self._pending = None
        call = dict(zip(self._parameters, args)) | kwargs
        if not _has_video(call):
            before = noted(cache_of(call))
            changed = None if before is None else before.grown(call)
            return None if changed is None else ((), changed)
        if module.training and torch.is_grad_enabled():
            raise RuntimeError(
                "model: got a video in training mode with gradients, but pruning has no backward pass; want "
                "model.eval() or torch.no_grad(), or the pruning disabled"
            )
        self.last = None
        self._prompt = _Prompt(call, _placeholders(module, call), _padding_mask(call))
        handed = (call.get("mm_encoder_outputs") or {}).get("video")
        if handed is not None:
            self._place(getattr(handed, "fastvid", None))
        return None

    @torch.compiler.disable
    def _encode_begins(self) -> None:
        self.last = self._encoded = None  # whose memory the vision tower may need
        self._family.encodes_video = True

    @torch.compiler.disable
    def _encode_ends(self, output: Any) -> None:
        self._family.returned(getattr(output, "pooler_output", output))
        encoded, self._encoded = self._encoded, None
        if hasattr(output, "pooler_output"):
            output.fastvid = encoded  # `generate` of transformers 5 encodes ahead of the model's call

    @torch.compiler.disable
    def _prune(self, videos: list[EncodedVideo]) -> None:
        """Behind the vision tower, which the device is still busy with: what is done here takes no time of its own."""
        embedding = self._inner.get_input_embeddings().weight
        for video in videos:
            video.tokens = video.tokens.to(embedding)
            video.prune(self.config)
        self._encoded = videos
        if self._prompt is not None:
            self._place(videos)

    def _place(self, encoded: list[EncodedVideo] | None) -> None:
        """All of a pruning that can be done without the embeddings."""
        prompt = self._prompt
        if encoded is None:
            raise ValueError("mm_encoder_outputs: got a video that was encoded while pruning was not enabled")
        prompt.videos, prompt.spans = placed(encoded, prompt.placeholders, self._family.newline)
        mask = prompt.mask
        layout = PromptLayout(
            prompt.placeholders.shape,
            self._inner.get_input_embeddings().weight.device,
            prompt.spans,
            grid=[video.grid for video in prompt.videos],
            newline=self._family.newline,
            attention_mask=None if mask is None or mask.all() else mask,
            padding_side="left" if mask is None or mask[:, -1].all() else "right",
        )
        prompt.pruning = PlacedPruning(layout, [video.prune(self.config) for video in prompt.videos])

    @torch.compiler.disable
    def _replace(self, module: nn.Module, args: tuple, kwargs: Call) -> tuple[tuple, Call] | None:
        """Before the language model, when the embeddings are there. The device is idle or soon will be: be quick."""
        prompt, self._prompt = self._prompt, None
        if prompt is None:
            return None
        if prompt.pruning is None:
            raise RuntimeError(
                "get_video_features: got a video without a call of what enable() put there, want one that calls it"
            )
        embeddings = kwargs["inputs_embeds"]
        pruned, self.last = prompt.pruning(embeddings)
        cache = cache_of(kwargs)
        if pruned is embeddings and (noted(cache) is None or prompt.cached == 0):
            note(cache, None)
            return None
        self._pending = Prefill(self.last, kwargs, prompt.cached)
        changed = self._pending.changed(kwargs) | {"inputs_embeds": pruned}
        if kwargs.get("deepstack_visual_embeds") is not None:
            saliency = [video.saliency for video in prompt.videos]
            changed |= pruned_deepstack(embeddings, prompt.spans, saliency, self.last, kwargs)
        for video in prompt.videos:
            video.pruned = None  # `generate` holds on to what was encoded
        return args, kwargs | changed

    @torch.compiler.disable
    def _end(self, module: nn.Module, args: tuple, output: Any) -> None:
        """Behind the model, also where it failed: what is encoded from now on is of another prompt."""
        self._prompt = self._pending = None

    @torch.compiler.disable
    def _note(self, module: nn.Module, args: tuple, output: Any) -> None:
        """Behind the language model, whose cache now holds the prompt."""
        pending, self._pending = self._pending, None
        cache = cache_of(output) if isinstance(output, Mapping) else None  # rather than a tuple
        if pending is not None and cache is not None:
            note(cache, pending.noted(getattr(self._inner, "rope_deltas", None)))


class _Encoder:
    """Stands in for the ``get_video_features`` of a model, and tells a handle of its calls, until it is removed."""

    def __init__(self, inner: nn.Module, handle: Handle) -> None:
        self._inner, self._encode = inner, inner.get_video_features
        self._handle: Handle | None = handle
        self._before = vars(inner).get("get_video_features")  # what somebody else put there
        self.__signature__ = inspect.signature(self._encode)  # by which `generate` chooses arguments
        inner.get_video_features = self

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self._handle is None:
            return self._encode(*args, **kwargs)
        handle = self._handle
        handle._encode_begins()
        try:
            output = self._encode(*args, **kwargs)
            handle._encode_ends(output)
        finally:
            handle._family.encodes_video = False
        return output

    def remove(self) -> None:
        self._handle = None
        if vars(self._inner).get("get_video_features") is not self:
            return  # somebody else took its place and may still call it
        if self._before is None:
            del self._inner.get_video_features
        else:
            self._inner.get_video_features = self._before


class _Prompt:
    """What is known of a prompt before its embeddings are there: read back here, and placed when it is encoded.

    Attributes:
        placeholders: (B, L) bool on the host, where the tokens of videos go.
        mask: (B, L) bool on the host, False at padding; None where the prompt came without.
        cached: slots of the cache that are taken already.
        videos, spans, pruning: once the videos are encoded.
    """

    def __init__(self, call: Call, placeholders: Tensor, mask: Tensor | None) -> None:
        self.placeholders, self.mask = placeholders, mask
        self.cached = int(cached_length(cache_of(call)))
        self.videos: list[EncodedVideo] = []
        self.spans: list[Span] = []
        self.pruning: PlacedPruning | None = None


def _has_video(call: Call) -> bool:
    encoded = call.get("mm_encoder_outputs") or {}
    return call.get("pixel_values_videos") is not None or encoded.get("video") is not None


def _placeholders(inner: nn.Module, call: Call) -> Tensor:
    token_id = inner.config.video_token_id
    if call.get("input_ids") is not None:
        return (call["input_ids"] == token_id).cpu()
    embeddings = call["inputs_embeds"]
    token = inner.get_input_embeddings()(torch.tensor(token_id, device=embeddings.device))
    return (embeddings == token).all(-1).cpu()


def _padding_mask(call: Call) -> Tensor | None:
    mask = call.get("attention_mask")
    if isinstance(mask, dict):  # one for each kind of layer
        mask = mask["full_attention"]
    if mask is None:
        return None
    tokens = call["input_ids"] if call.get("input_ids") is not None else call["inputs_embeds"]
    length, cache = tokens.shape[1], cache_of(call)
    if mask.dim() == 2:
        return mask[:, -length:].bool().cpu()
    if mask.dim() != 4 or not getattr(cache, "is_compileable", False):
        raise ValueError(f"attention_mask: got shape {tuple(mask.shape)}, want (B, L) for a video that is pruned")
    # `generate` makes one for a static cache, causal: its last query sees all columns but the padding.
    begin = int(cached_length(cache))
    last = mask[:, 0, -1, begin : begin + length]
    return (last if last.dtype == torch.bool else last >= 0).cpu()
