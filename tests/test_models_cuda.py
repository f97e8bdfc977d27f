"""On a GPU: pruned models, a pruned prefill in a CUDA graph, and the op in scripted and exported modules."""

from __future__ import annotations

import pytest
import torch

import fastvid_ext
from fastvid_ext import PruneConfig, prune_embeddings

pytestmark = pytest.mark.cuda
QUARTER = PruneConfig(retention_ratio=0.25)


@pytest.fixture(autouse=True)
def whole_float32(monkeypatch):
    """In tf32, which cudnn takes for the patches of a vision tower by default, other tokens are the most salient."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)


class Pruner(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(2.0, device="cuda"), requires_grad=False)

    def forward(self, tokens: torch.Tensor, saliency: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        kept, indices, _ = torch.ops.fastvid.prune(tokens * self.scale, saliency, retention_ratio=0.2)
        return kept + 1, indices


def video(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(16, 49, 64, generator=generator).cuda(), torch.rand(16, 49, generator=generator).cuda()


def check(module):
    for seed in range(2):
        arguments = video(seed)
        rows, indices = module(*arguments)
        want_rows, want_indices = Pruner()(*arguments)
        assert torch.equal(indices, want_indices)
        torch.testing.assert_close(rows, want_rows)


def test_scripted_module(tmp_path):
    torch.jit.script(Pruner()).save(tmp_path / "pruner.pt")
    check(torch.jit.load(tmp_path / "pruner.pt"))


def test_exported_program(tmp_path):
    torch.export.save(torch.export.export(Pruner(), video()), tmp_path / "pruner.pt2")
    check(torch.export.load(tmp_path / "pruner.pt2").module())


def tiny(family, attention="sdpa"):
    pytest.importorskip("transformers", minversion="4.57")
    from helpers import tiny_models

    model = tiny_models.make(family, attention)
    grid = tiny_models.grid_of(family)
    text = [21, 22, 23]
    batch = tiny_models.inputs(family, [[5, 6, ("video", grid), 7, 8], text])
    saliency = tiny_models.siglip() if family == "llava_onevision" else None
    return model, batch, saliency


def moved(batch):
    return {name: value.cuda() for name, value in batch.items()}


def same_tokens(got, want):
    """Whether two devices kept the same tokens of each video; says which they differ in."""
    for number, (on_gpu, on_cpu) in enumerate(zip(got.videos, want.videos, strict=True)):
        left, right = set(on_gpu.indices.tolist()), set(on_cpu.indices.tolist())
        assert left == right, (
            f"video {number}, {on_cpu.grid}: kept on the GPU alone {sorted(left - right)}, on the CPU alone "
            f"{sorted(right - left)}; segments {on_gpu.segments.tolist()} and {on_cpu.segments.tolist()}"
        )


# The kept tokens are the same when all pixels are off by 1e-4, relative: rounding is a hundred times less than that.
# With a static cache, generate compiles decoding by itself, which takes long: once is enough.
@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("llava_onevision", {}),
        ("qwen2_vl", {}),
        ("qwen2_5_vl", {}),
        ("qwen3_vl", {}),
        ("qwen2_vl", {"cache_implementation": "static", "disable_compile": True}),
        ("llava_onevision", {"cache_implementation": "static"}),
    ],
    ids=str,
)
def test_enabled_on_the_gpu_as_on_the_cpu(family, options):
    model, batch, saliency = tiny(family)
    common = {"max_new_tokens": 4, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    with fastvid_ext.enable(model, QUARTER, saliency=saliency) as handle:
        want = model.generate(**batch, **common)
        kept = handle.last
    model = model.cuda()
    with fastvid_ext.enable(model, QUARTER, saliency=saliency) as handle:
        got = model.generate(**moved(batch), **common, **options)
    assert handle.last.tokens_after < handle.last.tokens_before
    same_tokens(handle.last, kept)
    torch.testing.assert_close(torch.stack(got.logits).cpu(), torch.stack(want.logits), rtol=1e-3, atol=1e-3)
    assert torch.equal(got.sequences.cpu(), want.sequences)


@pytest.mark.parametrize(
    "config",
    [PruneConfig(), PruneConfig.llava_onevision(), PruneConfig.qwen2_vl()],
    ids=["default", "llava_onevision", "qwen2_vl"],
)
@pytest.mark.parametrize("family", ["llava_onevision", "qwen2_vl", "qwen2_5_vl"])
def test_no_sync_between_vision_tower_and_language_model(family, config):
    """And the number of tokens that was copied to the host is the number that is kept."""
    from helpers import watch

    model, batch, saliency = tiny(family)
    model, batch = model.cuda(), moved(batch)

    def enable():
        return fastvid_ext.enable(model, config, saliency=saliency)

    with watch.before(model.model.language_model, enable) as (handle, ops), torch.no_grad():
        for _ in range(2):  # the first loads kernels
            model(**batch)
    assert ops.waited == []
    for video in handle.last.videos:
        assert len(video.indices) == video.tokens_after
        assert video.indices.min() >= 0


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_no_sync_between_the_last_block_of_the_vision_tower_and_the_prune(family):
    model, batch, _ = tiny(family)
    model, batch = model.cuda(), moved(batch)
    visual = model.model.visual
    with fastvid_ext.enable(model, PruneConfig.qwen2_vl()) as handle, torch.no_grad():
        model(**batch)  # loads kernels
        hooks = [
            visual.blocks[-1].register_forward_hook(lambda *_: torch.cuda.set_sync_debug_mode("error")),
            visual.merger.register_forward_hook(lambda *_: torch.cuda.set_sync_debug_mode("default"), always_call=True),
        ]
        model(**batch)
        for hook in hooks:
            hook.remove()
    assert handle.last.tokens_after < handle.last.tokens_before


@pytest.mark.parametrize("attention", ["sdpa", "eager", "flash_attention_2"])
@pytest.mark.parametrize("family", ["llava_onevision", "qwen2_5_vl"])
def test_bf16(family, attention):
    if attention == "flash_attention_2":
        pytest.importorskip("flash_attn")
    model, batch, saliency = tiny(family, attention)
    model = model.to("cuda", torch.bfloat16)
    batch = {name: value.bfloat16() if value.is_floating_point() else value for name, value in moved(batch).items()}
    with fastvid_ext.enable(model, QUARTER, saliency=saliency) as handle:
        out = model.generate(**batch, max_new_tokens=4, do_sample=False)
    assert out.shape[1] == batch["input_ids"].shape[1] + 4
    assert handle.last.tokens_after == handle.last.videos[0].grid[0] * int(handle.last.tokens_before / 10 * 0.25)


def test_device_map(tmp_path):
    pytest.importorskip("accelerate")
    model, batch, _ = tiny("qwen2_5_vl")
    with fastvid_ext.enable(model, QUARTER), torch.no_grad():
        want = model(**batch).logits
    model.save_pretrained(tmp_path)
    model = type(model).from_pretrained(tmp_path, device_map="cuda:0").eval()
    with fastvid_ext.enable(model, QUARTER), torch.no_grad():
        got = model(**moved(batch)).logits
    torch.testing.assert_close(got.cpu(), want, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    "config", [QUARTER, PruneConfig.llava_onevision(retention_ratio=0.25)], ids=["exact", "masked"]
)
def test_a_whole_pruned_prefill_in_a_cuda_graph(config):
    transformers = pytest.importorskip("transformers", minversion="4.57")
    torch.manual_seed(0)
    model = transformers.Qwen2Model(
        transformers.Qwen2Config(
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            vocab_size=64,
        )
    )
    model = model.to("cuda", torch.bfloat16).eval()
    frames, height, width = 16, 6, 6
    prompt = torch.randn(2, 8 + frames * height * width + 8, 64, device="cuda", dtype=torch.bfloat16)
    saliency = torch.rand(2, frames, height * width, device="cuda")
    spans = [(row, 8, 8 + frames * height * width) for row in range(2)]
    positions = torch.arange(prompt.shape[1], device="cuda")[None]

    @torch.no_grad()
    def prefill():
        embeddings, kept = prune_embeddings(
            prompt, spans, grid=(frames, height, width), saliency=list(saliency), config=config, fixed_length=True
        )
        out = model(
            inputs_embeds=embeddings,
            position_ids=kept.gather(positions),
            attention_mask=kept.mask.long(),
            use_cache=False,
        )
        return out.last_hidden_state[:, -1]

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):
            prefill()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = prefill()
    for seed in range(3):
        generator = torch.Generator("cuda").manual_seed(seed)
        prompt.copy_(torch.randn(prompt.shape, device="cuda", generator=generator))
        saliency.copy_(torch.rand(saliency.shape, device="cuda", generator=generator))
        graph.replay()
        torch.testing.assert_close(captured, prefill(), rtol=2e-2, atol=2e-2)
