"""A real clip's tokens in a tiny random language model, end to end."""

from __future__ import annotations

import importlib.util

import pytest
import torch

transformers = pytest.importorskip("transformers", minversion="4.57")

from fastvid_ext import PruneConfig, prune, prune_embeddings  # noqa: E402
from fastvid_ext.demo import clip, encoder  # noqa: E402
from fastvid_ext.demo.errors import DemoError  # noqa: E402

TEXT_BEFORE, TEXT_AFTER = 7, 11
FRAMES, SIDE = 16, encoder.GRID


@pytest.fixture(scope="module")
def encoded():
    """DINOv2 tokens of bikes.mp4 and the attention of the CLS token."""
    missing = [name for name in ("av", "onnx") if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)} (make demo installs it)")
    try:
        path = clip.default_clip()
        encoder.find_weights()
    except DemoError as error:
        pytest.skip(str(error))
    images = clip.read_clip(path, FRAMES, encoder.IMAGE_SIZE, SIDE).images
    return encoder.Encoder(torch.device("cpu"))(images)


@pytest.mark.parametrize(
    "config",
    [PruneConfig(), PruneConfig.llava_onevision(), PruneConfig.qwen2_vl()],
    ids=["video", "onevision", "qwen"],
)
def test_a_real_pass(encoded, config):
    torch.manual_seed(0)
    model = transformers.Qwen2ForCausalLM(
        transformers.Qwen2Config(
            hidden_size=encoder.HIDDEN,
            intermediate_size=256,
            num_hidden_layers=2,
            num_attention_heads=6,
            num_key_value_heads=2,
            vocab_size=64,
            max_position_embeddings=FRAMES * SIDE * SIDE + 64,
        )
    ).eval()
    tokens, saliency = encoded
    text = model.get_input_embeddings()(torch.arange(TEXT_BEFORE + TEXT_AFTER))
    prompt = torch.cat([text[:TEXT_BEFORE], tokens.flatten(0, 1), text[TEXT_BEFORE:]])[None].detach()
    stop = TEXT_BEFORE + FRAMES * SIDE * SIDE

    with torch.no_grad():
        embeddings, kept = prune_embeddings(
            prompt, [(0, TEXT_BEFORE, stop)], grid=(FRAMES, SIDE, SIDE), saliency=saliency, config=config
        )
        positions = kept.gather(torch.arange(prompt.shape[1])[None])
        cache = transformers.DynamicCache(config=model.config)
        arguments = {"attention_mask": kept.mask.long(), "past_key_values": cache}
        logits = model(inputs_embeds=embeddings, position_ids=positions, **arguments).logits[0, -1:]
        answer = []
        for step in range(6):
            answer.append(int(logits[-1].argmax()))
            logits = model(
                input_ids=torch.tensor([answer[-1:]]),
                position_ids=torch.tensor([[prompt.shape[1] + step]]),
                past_key_values=cache,
            ).logits[0]

        # The same from the op, gathered by hand, in one pass without a cache.
        result = prune(tokens, saliency, config=config)
        whole = torch.cat([text[:TEXT_BEFORE], result.tokens, text[TEXT_BEFORE:]])
        whole = torch.cat([whole, model.get_input_embeddings()(torch.tensor(answer))])[None]
        places = [*range(TEXT_BEFORE), *(TEXT_BEFORE + result.indices).tolist(), *range(stop, prompt.shape[1] + 6)]
        once = model(
            inputs_embeds=whole,
            position_ids=torch.tensor([places]),
            attention_mask=torch.ones(1, len(places), dtype=torch.long),
            use_cache=False,
        ).logits[0]
    assert once[-7:-1].argmax(-1).tolist() == answer
    torch.testing.assert_close(logits[0], once[-1], rtol=1e-4, atol=1e-4)
    assert kept.tokens_before == FRAMES * SIDE * SIDE
    assert 0 < kept.tokens_after <= FRAMES * int(SIDE * SIDE * config.retention_ratio)
    assert torch.equal(kept.videos[0].indices, result.indices)
    assert kept.videos[0].segments[-1] >= config.min_segments - 1
