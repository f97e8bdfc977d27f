"""What a pruned prompt has to give, from an unhooked language model that is fed the gathered embeddings."""

from __future__ import annotations

import dataclasses

import torch
import torch.nn.functional as F

import fastvid_ext
from fastvid_ext.models.deepstack import pruned_deepstack
from helpers import tiny_models


@dataclasses.dataclass
class Fed:
    """What a language model was fed for one prompt without padding."""

    embeddings: torch.Tensor
    positions: torch.Tensor
    deepstack: dict
    next_position: torch.Tensor


def recorded(module, run):
    """The arguments of each call of the module while `run` runs, by name, or by number where they have none."""
    calls = []
    hook = module.register_forward_pre_hook(
        lambda _, args, kwargs: calls.append(dict(enumerate(args)) | kwargs), with_kwargs=True
    )
    try:
        run()
    finally:
        hook.remove()
    return calls


def siglip_attention(head, hidden):
    """(T, P) attention of the probe, mean over heads, and (T, C) output of SigLIP's pooling head, by its weights."""
    heads, width = head.attention.num_heads, head.attention.embed_dim
    weights, biases = head.attention.in_proj_weight.chunk(3), head.attention.in_proj_bias.chunk(3)
    probe = head.probe.expand(len(hidden), -1, -1)
    query, key, value = (F.linear(x, w, b) for x, w, b in zip((probe, hidden, hidden), weights, biases))
    query, key, value = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (query, key, value))
    attention = (query @ key.mT / (width // heads) ** 0.5).softmax(-1)
    out = head.attention.out_proj((attention @ value).transpose(1, 2).flatten(2))
    return attention.mean(1)[:, 0], (out + head.mlp(head.layernorm(out)))[:, 0]


def llava_encoded(model, head, batch):
    """Saliency and frame features of each video, as the official LLaVA-OneVision code has them."""
    videos = batch["pixel_values_videos"]
    with torch.no_grad():
        hidden = model.model.vision_tower(videos.flatten(0, 1), output_hidden_states=True).hidden_states[-1]
        norm = next(m for name, m in head.named_modules() if name.endswith("post_layernorm"))
        pooling = next(m for name, m in head.named_modules() if name.endswith("head"))
        weights, features = siglip_attention(pooling, norm(hidden))
    side = int(weights.shape[1] ** 0.5)
    weights = F.interpolate(weights.view(-1, 1, side, side), size=[-(-side // 2)] * 2, mode="bilinear").flatten(1)
    frames = videos.shape[1]
    return list(weights.split(frames)), list(features.split(frames))


def qwen_encoded(model, batch):
    """Saliency of each video: the mean query of a frame against the keys of its merged tokens, in the last block."""
    visual, grids = model.model.visual, batch["video_grid_thw"]
    attention = visual.blocks[-1].attn

    def run():
        return visual(batch["pixel_values_videos"], grid_thw=grids)

    with torch.no_grad():
        [attended] = recorded(attention, run)
        [merged] = recorded(visual.merger, run)
        out = run()
    hidden, (cos, sin) = attended[0], attended["position_embeddings"]
    query, key, _ = attention.qkv(hidden).unflatten(-1, (3, attention.num_heads, -1)).unbind(1)

    def turned(x):
        half = x.shape[-1] // 2
        return x * cos[:, None] + torch.cat([-x[..., half:], x[..., :half]], -1) * sin[:, None]

    query, key = turned(query), turned(key)
    # Where each of the blocks' tokens comes out: the merger keeps their order, the tower's result is in the order of
    # the prompt.
    with torch.no_grad():
        inside = visual.merger(merged[0])
    outside = out if isinstance(out, torch.Tensor) else out[0] if isinstance(out, tuple) else out.pooler_output
    order = torch.cdist(inside.double(), outside.double()).argmin(1)
    assert order.sort().values.tolist() == list(range(len(order)))
    saliency, splits, start = torch.empty(len(order)), [], 0
    for frames, height, width in grids.tolist():
        for _ in range(frames):
            here = slice(start, start + height * width)
            groups = key[here].unflatten(0, (-1, 4)).mean(1)
            logits = torch.einsum("hc,khc->hk", query[here].mean(0), groups) / query.shape[-1] ** 0.5
            saliency[order[start // 4 : (start + height * width) // 4]] = logits.softmax(-1).mean(0)
            start += height * width
        splits.append(frames * height * width // 4)
    return [part.view(frames, -1) for part, frames in zip(saliency.split(splits), grids[:, 0].tolist())]


def pruned(model, family, batch, config, head=None, saliency=None) -> Fed:
    """What the language model gets for a batch of one row without padding, pruned by hand."""
    with torch.no_grad():
        [fed] = recorded(model.model.language_model, lambda: model(**batch))
    embeddings = fed["inputs_embeds"]
    length = embeddings.shape[1]
    positions = fed.get("position_ids")
    if positions is None:
        positions = torch.arange(length)[None]
    if "pixel_values_videos" not in batch:
        return Fed(embeddings, positions, {}, next_position(model, length, positions))
    columns = (batch["input_ids"][0] == tiny_models.VIDEO).nonzero().flatten()
    if family == "llava_onevision":
        count, frames = batch["pixel_values_videos"].shape[:2]
        grids, newlines = [(frames, 4, 4)] * count, 1
        weights, features = (None, None) if saliency == "norm" else llava_encoded(model, head, batch)
    else:
        grids, newlines = [(t, h // 2, w // 2) for t, h, w in batch["video_grid_thw"].tolist()], 0
        weights, features = None if saliency == "norm" else qwen_encoded(model, batch), None
    kept = torch.ones(length, dtype=torch.bool)
    merged = embeddings[0].clone()
    start, spans = 0, []
    for number, (frames, height, width) in enumerate(grids):
        here = columns[start : start + frames * height * width]
        tokens = embeddings[0, here].unflatten(0, (frames, height * width))
        ranked_by = tokens.norm(dim=-1) if weights is None else weights[number]
        result = fastvid_ext.prune(tokens, ranked_by, None if features is None else features[number], config=config)
        kept[here] = False
        kept[here[result.indices]] = True
        merged[here[result.indices]] = result.tokens
        start += frames * height * width + newlines
        spans.append((0, here))
    assert start == len(columns)
    deepstack = {}
    if fed.get("deepstack_visual_embeds") is not None:
        _, pruning = fastvid_ext.prune_embeddings(
            embeddings, spans, grid=grids, saliency=weights or "norm", config=config
        )
        deepstack = pruned_deepstack(embeddings, spans, weights or [None] * len(grids), pruning, fed)
    return Fed(merged[kept][None], positions[..., kept], deepstack, next_position(model, length, positions))


def next_position(model, length, positions):
    """Of the token behind an unpruned prompt, where the caller of the model gives none."""
    deltas = getattr(model.model, "rope_deltas", None)
    return torch.full((*positions.shape[:-1], 1), length) + (0 if deltas is None else deltas.view(-1)[0])


def logits(model, fed: Fed, new_tokens=(), by_generate=True) -> torch.Tensor:
    """(prompt + new, vocabulary) of an uncached pass over the prompt and the tokens behind it.

    Where a video has more frames than rows and columns, `generate` of transformers 5 and the model itself number the
    tokens behind it differently.
    """
    new = torch.tensor([list(new_tokens)], dtype=torch.long)
    embeddings = torch.cat([fed.embeddings, model.get_input_embeddings()(new)], 1)
    first = fed.positions[..., -1:] + 1 if by_generate else fed.next_position
    positions = torch.cat([fed.positions, first + torch.arange(new.shape[1])], -1)
    deepstack = dict(fed.deepstack)
    if deepstack:
        masks = deepstack["visual_pos_masks"]
        deepstack["visual_pos_masks"] = F.pad(masks, (0, new.shape[1]))
    mask = torch.ones(embeddings.shape[:2], dtype=torch.long)
    with torch.no_grad():
        out = model.model.language_model(
            inputs_embeds=embeddings, position_ids=positions, attention_mask=mask, use_cache=False, **deepstack
        )
        return model.lm_head(out.last_hidden_state)[0]
