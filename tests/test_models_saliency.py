"""Saliency and frame features against the official formulas, written out."""

from __future__ import annotations

import pytest
import torch

transformers = pytest.importorskip("transformers", minversion="4.57")

from helpers import pruned_models, tiny_models  # noqa: E402

import fastvid_ext  # noqa: E402
from fastvid_ext.models import Handle, saliency  # noqa: E402

QWEN = [family for family in tiny_models.FAMILIES if family.startswith("qwen")]


def encoded(monkeypatch, model, batch, **arguments):
    """The videos that a forward pass encoded."""
    seen = []
    prune = Handle._prune
    monkeypatch.setattr(Handle, "_prune", lambda self, videos: seen.append(videos) or prune(self, videos))
    with fastvid_ext.enable(model, **arguments) as handle, torch.no_grad():
        model(**batch)
    return seen[-1], handle.last


@pytest.mark.parametrize("source", ["model", "head", "name", "tower"])
def test_siglip_pooling_head(monkeypatch, tmp_path, source):
    model = tiny_models.make("llava_onevision")
    siglip = tiny_models.siglip()
    if source == "tower":  # a checkpoint that kept its head
        config = model.config
        config.vision_config.vision_use_head = True
        torch.manual_seed(5)
        model = type(model)(config).eval()
        siglip, given = model.model.vision_tower, None
    elif source == "head":
        given = next(module for name, module in siglip.named_modules() if name.endswith("head"))
        for name, module in siglip.named_modules():
            if name.endswith("post_layernorm"):  # the model's own serves
                own = next(m for n, m in model.model.vision_tower.named_modules() if n.endswith("post_layernorm"))
                module.load_state_dict(own.state_dict())
    elif source == "name":
        siglip.save_pretrained(tmp_path)
        given = str(tmp_path)
    else:
        given = siglip
    grid = tiny_models.grid_of("llava_onevision")
    batch = tiny_models.inputs("llava_onevision", [[5, ("video", grid), 6]])
    wanted, features = pruned_models.llava_encoded(model, siglip, batch)
    found, last = encoded(monkeypatch, model, batch, saliency=given)
    torch.testing.assert_close(found[0].saliency, wanted[0])
    torch.testing.assert_close(found[0].frame_features, features[0])
    torch.testing.assert_close(last.videos[0].frame_features, features[0])
    assert found[0].saliency.shape == (10, 16)
    assert not any(name.endswith("probe") for name in model.state_dict()) or source == "tower"


def test_weights_are_pooled_like_the_tokens():
    """Bilinear, to half the side rounded up."""
    weights = torch.rand(3, 27 * 27)
    pooled = saliency.pool_to_grid(weights.half())
    assert pooled.shape == (3, 14 * 14)
    config = transformers.LlavaOnevisionConfig(
        vision_config=tiny_models.siglip_config(image_size=27 * 4, vision_use_head=False),
        text_config=transformers.Qwen2Config(**tiny_models.TEXT),
    )
    model = transformers.LlavaOnevisionForConditionalGeneration(config).model
    torch.testing.assert_close(pooled, model.apply_pooling(weights[..., None])[..., 0], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", QWEN)
def test_mean_query_attention(monkeypatch, family, attention):
    model = tiny_models.make(family, attention)
    grids = [(10, 8, 12), (3, 12, 4), (1, 4, 4)]  # windows that do not divide the frame among them
    batch = tiny_models.inputs(family, [[5, *(("video", grid) for grid in grids), 6]])
    wanted = pruned_models.qwen_encoded(model, batch)
    found, last = encoded(monkeypatch, model, batch)
    assert [video.grid for video in found] == [(frames, height // 2, width // 2) for frames, height, width in grids]
    for video, want in zip(found, wanted):
        torch.testing.assert_close(video.saliency, want, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(video.saliency.sum(1), torch.ones(len(want)))
    assert [video.grid for video in last.videos] == [video.grid for video in found]


def test_long_videos_are_attended_in_pieces(monkeypatch):
    qkv, grids = torch.randn(7 * 16 + 8, 3 * 24), [(7, 4, 4), (1, 2, 4)]
    turns = torch.rand(len(qkv), 8)
    whole = saliency.mean_query_attention(qkv, (turns.cos(), turns.sin()), 3, grids, 4)
    monkeypatch.setattr(saliency, "CHUNK", 2 * 16 * 24)
    pieces = saliency.mean_query_attention(qkv, (turns.cos(), turns.sin()), 3, grids, 4)
    assert [part.shape for part in pieces] == [(7, 4), (1, 2)]
    for a, b in zip(whole, pieces):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("family", tiny_models.FAMILIES)
def test_norm(family):
    model = tiny_models.make(family)
    batch = tiny_models.inputs(family, [[5, ("video", tiny_models.grid_of(family)), 6]])
    config = fastvid_ext.PruneConfig(retention_ratio=0.25)
    wanted = pruned_models.logits(model, pruned_models.pruned(model, family, batch, config, saliency="norm"))
    with fastvid_ext.enable(model, config, saliency="norm"), torch.no_grad():
        got = model(**batch).logits[0]
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)


def test_deepstack_features_merge_like_their_tokens(monkeypatch):
    """Merging is a weighted mean: of the tokens themselves and of a line through them it gives what the op gives."""
    model = tiny_models.make("qwen3_vl")
    grid = tiny_models.grid_of("qwen3_vl")
    batch = tiny_models.inputs("qwen3_vl", [[5, ("image", (1, 4, 4)), ("video", grid), 6, ("video", (4, 4, 8))]])
    language_model = model.model.language_model

    def replace(module, args, kwargs):
        tokens = kwargs["inputs_embeds"][kwargs["visual_pos_masks"]]
        return args, kwargs | {"deepstack_visual_embeds": [tokens, 2 * tokens + 1]}

    with torch.no_grad():
        for config in (fastvid_ext.PruneConfig(retention_ratio=0.3), fastvid_ext.PruneConfig.llava_onevision()):
            hook = language_model.register_forward_pre_hook(replace, with_kwargs=True)
            with fastvid_ext.enable(model, config):
                [fed] = pruned_models.recorded(language_model, lambda: model(**batch))
            hook.remove()
            kept = fed["inputs_embeds"][fed["visual_pos_masks"]]
            first, second = fed["deepstack_visual_embeds"]
            torch.testing.assert_close(first, kept, rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(second, 2 * kept + 1, rtol=1e-5, atol=1e-5)
            assert fed["visual_pos_masks"].sum() == len(kept) < 4 + 10 * 24
