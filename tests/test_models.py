"""enable() on tiny models: what generate and forward give, against an unhooked language model fed by hand."""

from __future__ import annotations

import copy
import gc
import subprocess
import sys
import weakref

import pytest
import torch

transformers = pytest.importorskip("transformers", minversion="4.57")

from helpers import pruned_models, tiny_models, watch  # noqa: E402

import fastvid_ext  # noqa: E402
from fastvid_ext import PruneConfig  # noqa: E402
from fastvid_ext.models import Handle  # noqa: E402

any_family = pytest.mark.parametrize("family", tiny_models.FAMILIES)
QUARTER = PruneConfig(retention_ratio=0.25)
CONFIGS = {
    "default": QUARTER,
    "onevision": PruneConfig.llava_onevision(retention_ratio=0.3),
    "qwen": PruneConfig.qwen2_5_vl(retention_ratio=0.27),
}


@pytest.fixture(scope="module")
def head():
    return tiny_models.siglip()


@pytest.fixture(scope="module")
def models():
    """Made once a module; a test that changes one copies it."""
    made = {}

    def get(family, attention="sdpa"):
        key = family, attention
        if key not in made:
            made[key] = tiny_models.make(family, attention)
        return made[key]

    return get


def enable(model, family, config=QUARTER, head=None):
    return fastvid_ext.enable(model, config, saliency=(head or "norm") if family == "llava_onevision" else None)


def rows_of(family):
    """A long video, text alone, a short video and an image, two videos; LLaVA-OneVision's are of one length."""
    grid = tiny_models.grid_of(family)
    short = grid if family == "llava_onevision" else (4, 4, 8)
    image = ("image", (1, 28, 28) if family == "llava_onevision" else (1, 4, 4))
    return [
        [5, 6, ("video", grid), 7, 8],
        [11, 12, 13, 14],
        [21, ("video", short), 22, image, 23],
        [31, ("video", short), ("video", short), 32, 33],
    ]


def row_alone(family, batch, rows, number):
    """The inputs of one row of a batch without its padding, its own pixels with it."""
    mask = batch["attention_mask"][number].bool()
    alone = {"input_ids": batch["input_ids"][number : number + 1, mask]}
    alone["attention_mask"] = torch.ones_like(alone["input_ids"])
    if "mm_token_type_ids" in batch:
        alone["mm_token_type_ids"] = batch["mm_token_type_ids"][number : number + 1, mask]
    for kind, pixels in (("video", "pixel_values_videos"), ("image", "pixel_values")):
        counts = [sum(isinstance(part, tuple) and part[0] == kind for part in row) for row in rows]
        first, count = sum(counts[:number]), counts[number]
        if not count:
            continue
        if family == "llava_onevision":
            alone[pixels] = batch[pixels][first : first + count]
            if kind == "image":
                alone["image_sizes"] = batch["image_sizes"][first : first + count]
        else:
            grids = batch[f"{kind}_grid_thw"]
            sizes = grids.prod(1).tolist()
            alone[pixels] = batch[pixels].split(sizes)[first : first + count]
            alone[pixels] = torch.cat(alone[pixels])
            alone[f"{kind}_grid_thw"] = grids[first : first + count]
    return alone


def teacher_forced(model, family, alone, config, head, tokens, by_generate=True):
    """(n, vocabulary) logits from which each of the n tokens behind the prompt is chosen."""
    fed = pruned_models.pruned(model, family, alone, config, head, saliency=None if head else "norm")
    return pruned_models.logits(model, fed, tokens, by_generate)[-len(tokens) - 1 : -1]


@any_family
@pytest.mark.parametrize("name", CONFIGS)
def test_logits_are_those_of_the_gathered_embeddings(models, head, family, name):
    model = models(family)
    batch = tiny_models.inputs(family, [rows_of(family)[0]])
    wanted = pruned_models.logits(model, pruned_models.pruned(model, family, batch, CONFIGS[name], head))
    with enable(model, family, CONFIGS[name], head) as handle, torch.no_grad():
        got = model(**batch).logits[0]
    assert got.shape == wanted.shape
    assert len(got) == batch["input_ids"].shape[1] - handle.last.tokens_before + handle.last.tokens_after
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)


@any_family
@pytest.mark.parametrize(
    ("attention", "cache"),
    [("sdpa", "dynamic"), ("sdpa", "static"), ("sdpa", "none"), ("eager", "dynamic"), ("eager", "static")],
)
def test_generate_on_a_padded_batch(models, head, family, attention, cache):
    """Videos of different lengths, two in a row, images, and text alone; each row as if it were by itself."""
    model, rows = models(family, attention), rows_of(family)
    batch = tiny_models.inputs(family, rows)
    options = {"static": {"cache_implementation": "static"}, "dynamic": {}, "none": {"use_cache": False}}[cache]
    with enable(model, family, head=head) as handle:
        out = model.generate(
            **batch, **options, max_new_tokens=4, do_sample=False, output_logits=True, return_dict_in_generate=True
        )
    assert [video.row for video in handle.last.videos] == [0, 2, 3, 3]
    tokens = out.sequences[:, batch["input_ids"].shape[1] :]
    got = torch.stack(out.logits, 1)
    for number in range(len(rows)):
        alone = row_alone(family, batch, rows, number)
        wanted = teacher_forced(model, family, alone, QUARTER, head, tokens[number].tolist())
        torch.testing.assert_close(got[number], wanted, rtol=1e-4, atol=1e-4)
        got[number, :, tiny_models.IMAGE : tiny_models.END + 1] = -torch.inf  # which generate is told to suppress
        assert torch.equal(tokens[number], got[number].argmax(-1))


@any_family
@pytest.mark.parametrize(
    "options", [{"do_sample": True}, {"num_beams": 3}, {"num_beams": 2, "do_sample": True}], ids=str
)
def test_sampling_and_beams(models, head, family, options):
    if family == "qwen3_vl" and "num_beams" in options and transformers.__version__ < "5":
        pytest.skip("transformers 4.57 cannot repeat Qwen3-VL's videos for beams")
    model, rows = models(family), rows_of(family)[:3]
    batch = tiny_models.inputs(family, rows)
    torch.manual_seed(3)
    with enable(model, family, head=head):
        out = model.generate(
            **batch, **options, max_new_tokens=4, output_logits=True, output_scores=True, return_dict_in_generate=True
        )
    tokens = out.sequences[:, batch["input_ids"].shape[1] :]
    for number in range(len(rows)):
        alone = row_alone(family, batch, rows, number)
        wanted = teacher_forced(model, family, alone, QUARTER, head, tokens[number].tolist())
        if "num_beams" not in options:
            torch.testing.assert_close(torch.stack(out.logits, 1)[number], wanted, rtol=1e-4, atol=1e-4)
            continue
        picked = wanted.log_softmax(-1).gather(1, tokens[number][:, None]).sum()
        if not options.get("do_sample"):  # sampling scores what its processors leave
            torch.testing.assert_close(out.sequences_scores[number], picked / len(tokens[number]), rtol=1e-4, atol=1e-4)
        assert out.beam_indices.shape[1] == 4


@any_family
@pytest.mark.parametrize("padded", [False, True])
def test_keeping_everything_changes_nothing(models, family, padded):
    model = models(family)
    batch = tiny_models.inputs(family, rows_of(family)[: 3 if padded else 1])
    with torch.no_grad():
        wanted = model(**batch).logits
        tokens = model.generate(**batch, max_new_tokens=4, do_sample=False)
        with enable(model, family, PruneConfig(retention_ratio=1.0)) as handle:
            assert torch.equal(model(**batch).logits, wanted)
            assert torch.equal(model.generate(**batch, max_new_tokens=4, do_sample=False), tokens)
    assert handle.last.tokens_after == handle.last.tokens_before > 0


@any_family
def test_prompts_without_video_are_untouched(models, family):
    """Before and behind a prompt with one, images among them; a static cache is reused."""
    model, rows = models(family), rows_of(family)
    image = [row for row in rows[2] if isinstance(row, int) or row[0] == "image"]
    text = tiny_models.inputs(family, [rows[1], image])
    video = tiny_models.inputs(family, [rows[0]])
    options = {"max_new_tokens": 4, "do_sample": False}
    wanted = model.generate(**text, **options)
    wanted_static = model.generate(**text, **options, cache_implementation="static")
    with enable(model, family) as handle:
        assert torch.equal(model.generate(**text, **options), wanted)
        assert handle.last is None
        first = model.generate(**video, **options)
        last = handle.last
        assert torch.equal(model.generate(**text, **options), wanted)
        assert torch.equal(model.generate(**video, **options, cache_implementation="static"), first)
        assert torch.equal(model.generate(**text, **options, cache_implementation="static"), wanted_static)
        assert torch.equal(model.generate(**video, **options), first)
    assert last.tokens_after < last.tokens_before


@any_family
def test_a_reset_cache_forgets_its_prompt(models, family):
    model, rows = models(family), rows_of(family)
    text, video = (tiny_models.inputs(family, [rows[i]]) for i in (1, 0))
    with torch.no_grad():
        wanted = model(**text).logits
        cache = transformers.StaticCache(config=model.config.get_text_config(), max_cache_len=400)
        with enable(model, family):
            model(**video, past_key_values=cache)
            cache.reset()
            torch.testing.assert_close(model(**text, past_key_values=cache).logits, wanted, rtol=1e-4, atol=1e-4)


@any_family
@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize("masks", ["none", "whole"])
@pytest.mark.parametrize("step", [1, 2])
def test_decoding_by_hand(models, head, family, cache, masks, step):
    """A cache and the next tokens are enough, one or several at a time; a mask counts the unpruned columns."""
    model = models(family)
    batch = tiny_models.inputs(family, [rows_of(family)[0]])
    new = [41, 42, 43, 44]
    wanted = teacher_forced(model, family, batch, QUARTER, head, [*new, 0], by_generate=False)
    made = (
        transformers.DynamicCache(config=model.config.get_text_config())
        if cache == "dynamic"
        else transformers.StaticCache(config=model.config.get_text_config(), max_cache_len=400)
    )
    mask = batch["attention_mask"]
    with enable(model, family, head=head), torch.no_grad():
        got = [model(**batch, past_key_values=made, use_cache=True).logits[0, -1:]]
        for first in range(0, len(new), step):
            mask = torch.nn.functional.pad(mask, (0, step), value=1)
            tokens = torch.tensor([new[first : first + step]])
            more = {} if masks == "none" else {"attention_mask": mask}
            got.append(model(input_ids=tokens, past_key_values=made, use_cache=True, **more).logits[0])
    torch.testing.assert_close(torch.cat(got), wanted, rtol=1e-4, atol=1e-4)


@any_family
def test_embeddings_in_place_of_ids(models, family):
    model = models(family)
    batch = tiny_models.inputs(family, [rows_of(family)[0]])
    with torch.no_grad():
        # Without ids, Qwen does not know its positions.
        [fed] = pruned_models.recorded(model.model.language_model, lambda: model(**batch))
        with enable(model, family):
            wanted = model(**batch).logits
            batch["inputs_embeds"] = model.get_input_embeddings()(batch.pop("input_ids"))
            got = model(**batch, position_ids=fed.get("position_ids")).logits
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)


@any_family
def test_saved_and_reloaded_while_enabled(models, head, family, tmp_path):
    model = models(family)
    batch = tiny_models.inputs(family, [rows_of(family)[0]])
    names = set(model.state_dict())
    with torch.no_grad():
        whole = model(**batch).logits
        with enable(model, family, head=head):
            wanted = model(**batch).logits
            assert set(model.state_dict()) == names
            model.save_pretrained(tmp_path)
            copied = copy.deepcopy(model)
        assert torch.equal(model(**batch).logits, whole)
        assert torch.equal(copied(**batch).logits, wanted)
        reloaded = type(model).from_pretrained(tmp_path).eval()
        assert torch.equal(reloaded(**batch).logits, whole)
        with enable(reloaded, family, head=head):
            assert torch.equal(reloaded(**batch).logits, wanted)
        copied.load_state_dict(reloaded.state_dict())
        assert torch.equal(copied(**batch).logits, wanted)


@any_family
def test_compiled(models, head, family):
    """The compiler may split its graph at the hooks, but has to give the same."""
    model = copy.deepcopy(models(family))
    batch = tiny_models.inputs(family, [rows_of(family)[0]])
    with enable(model, family, head=head), torch.no_grad():
        wanted = model(**batch).logits
        torch.compiler.reset()
        model.forward = torch.compile(model.forward, backend="eager")
        torch.testing.assert_close(model(**batch).logits, wanted, rtol=1e-5, atol=1e-5)
    torch.compiler.reset()


def test_compiled_decoding(models, head):
    """With a static cache; and what was compiled with the hooks is not used without them."""
    family = "llava_onevision"
    model = copy.deepcopy(models(family))
    batch = tiny_models.inputs(family, [rows_of(family)[0]])
    options = {"max_new_tokens": 3, "do_sample": False, "cache_implementation": "static"}
    whole = model.generate(**batch, **options)
    with enable(model, family, head=head):
        tokens = model.generate(**batch, **options)
        torch.compiler.reset()
        model.forward = torch.compile(model.forward, backend="eager")
        assert torch.equal(model.generate(**batch, **options), tokens)
    assert torch.equal(model.generate(**batch, **options), whole)
    torch.compiler.reset()


@any_family
def test_last_tells_what_was_kept(models, family):
    model = models(family)
    batch = tiny_models.inputs(family, rows_of(family)[:3])
    with enable(model, family, PruneConfig(retention_ratio=0.25)) as handle, torch.no_grad():
        model(**batch)
    long, short = handle.last.videos
    frames, height, width = long.grid
    assert long.tokens_before == frames * height * width
    assert long.tokens_after == len(long.indices) == frames * int(height * width * 0.25)
    assert long.frame_counts.shape == long.segments.shape == (frames,)
    assert long.indices.tolist() == sorted(set(long.indices.tolist()))
    assert handle.last.tokens_after == long.tokens_after + short.tokens_after
    ids = batch["input_ids"]
    for row in range(3):
        columns = handle.last.columns[row, handle.last.mask[row]]
        dropped = sum(video.tokens_before - video.tokens_after for video in handle.last.videos if video.row == row)
        assert len(columns) == batch["attention_mask"][row].sum() - dropped
        text = ids[row][(ids[row] != tiny_models.VIDEO) & (ids[row] != 0)]
        assert torch.equal(ids[row, columns][ids[row, columns] != tiny_models.VIDEO], text)


@pytest.mark.parametrize("name", [None, *CONFIGS])
@pytest.mark.parametrize("family", ["llava_onevision", "qwen2_vl", "qwen2_5_vl"])
def test_few_launches_and_no_sync_before_the_language_model(models, head, family, name):
    """What can be known earlier is, the kept tokens among it, so that a device never waits there for Python."""
    model = models(family)
    for rows, most in [(rows_of(family)[:1], 3), (rows_of(family)[:3], 9)]:
        batch = tiny_models.inputs(family, rows)
        with (
            watch.before(model.model.language_model, lambda: enable(model, family, CONFIGS.get(name), head)) as watched,
            torch.no_grad(),
        ):
            model(**batch)
        handle, ops = watched
        assert handle.last.tokens_after < handle.last.tokens_before
        assert ops.waited == []
        assert len(ops.launched) <= most, ops.launched


@pytest.mark.parametrize("family", [family for family in tiny_models.FAMILIES if family.startswith("qwen")])
def test_qwen_videos_are_pruned_where_their_tokens_are(models, monkeypatch, family):
    """Later, transformers waits for the device. Images that pass through the tower are left alone."""
    model, seen, prune = models(family), [], Handle._prune
    merger = model.model.visual.merger
    monkeypatch.setattr(Handle, "_prune", lambda self, videos: seen.append(len(videos)) or prune(self, videos))
    with enable(model, family), torch.no_grad():
        hooks = [
            merger.register_forward_pre_hook(lambda *_: seen.append("merger")),
            merger.register_forward_hook(lambda *_: seen.append("end")),
        ]
        model(**tiny_models.inputs(family, rows_of(family)[:3]))
        for hook in hooks:
            hook.remove()
    assert seen == ["merger", "end", "merger", 2, "end"]


@any_family
def test_nothing_is_held_while_the_next_prompt_is_encoded(models, head, family):
    """Only then can the peak of the device's memory, in the vision tower, be what it is without pruning."""
    model = models(family)
    tower = model.model.vision_tower if family == "llava_onevision" else model.model.visual
    batch = tiny_models.inputs(family, [rows_of(family)[0]])
    alive = []
    with enable(model, family, head=head) as handle, torch.no_grad():
        model(**batch)
        kept = [weakref.ref(x) for video in handle.last.videos for x in (video.indices, video.frame_features)]
        hook = tower.register_forward_pre_hook(lambda *_: alive.extend(ref() is not None for ref in kept))
        model(**batch)
        hook.remove()
        assert handle.last is not None
    assert alive == [False] * 2


@any_family
def test_a_disabled_handle_goes_with_its_last_reference(models, head, family):
    """Not with the next round of the garbage collector: until then, what it kept of a prompt would take memory."""
    model = models(family)
    gc.collect()
    gc.disable()
    try:
        handle = enable(model, family, head=head)
        with torch.no_grad():
            model(**tiny_models.inputs(family, [rows_of(family)[0]]))
        handle.disable()
        kept = weakref.ref(handle.last.columns)
        assert kept() is not None
        del handle
        assert kept() is None
    finally:
        gc.enable()


@any_family
def test_disabled_is_as_before(models, family):
    model = models(family)
    batch = tiny_models.inputs(family, [rows_of(family)[0]])
    hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())
    with torch.no_grad():
        wanted = model(**batch).logits
        handle = enable(model, family)
        assert model(**batch).logits.shape[1] < wanted.shape[1]
        assert repr(handle).startswith("<fastvid_ext pruning, enabled in")
        handle.disable()
        handle.disable()
        assert repr(handle).startswith("<fastvid_ext pruning, disabled in")
        assert torch.equal(model(**batch).logits, wanted)
    assert sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()) == hooks
    assert "get_video_features" not in vars(model.model)


@pytest.mark.parametrize("first", [True, False])
def test_a_wrapper_of_somebody_else_stays(models, first):
    """Whether it was there before or came later."""
    family = "qwen2_vl"
    model, inner = models(family), models(family).model
    batch = tiny_models.inputs(family, [rows_of(family)[0]])
    handle = None if first else enable(model, family)
    calls, encode = [], inner.get_video_features
    wrapper = inner.get_video_features = lambda *args, **kwargs: calls.append(args) or encode(*args, **kwargs)
    try:
        handle = handle or enable(model, family)
        with torch.no_grad():
            model(**batch)
            assert handle.last.tokens_after < handle.last.tokens_before
            handle.disable()
            assert inner.get_video_features is wrapper
            assert model(**batch).logits.shape[1] == batch["input_ids"].shape[1]
        assert len(calls) == 2
    finally:
        del inner.get_video_features


@any_family
def test_a_replacement_that_bypasses_it_is_named(models, family):
    model = models(family)
    inner = model.model
    plain = inner.get_video_features
    with enable(model, family) as handle, torch.no_grad():
        inner.get_video_features = plain
        with pytest.raises(RuntimeError, match=r"^get_video_features: got a video without a call of what enable"):
            model(**tiny_models.inputs(family, [rows_of(family)[0]]))
        assert handle.last is None
        del inner.get_video_features


@any_family
def test_a_call_that_failed_leaves_nothing(models, family):
    """Its prompt is not taken for that of the next video."""
    model = models(family)
    tower = model.model.vision_tower if family == "llava_onevision" else model.model.visual
    first, second = (tiny_models.inputs(family, [rows_of(family)[i]]) for i in (3, 0))

    def fail(*_):
        raise MemoryError

    with enable(model, family):
        wanted = model.generate(**second, max_new_tokens=3, do_sample=False)
        hook = tower.register_forward_pre_hook(fail)
        with pytest.raises(MemoryError), torch.no_grad():
            model(**first)
        hook.remove()
        assert torch.equal(model.generate(**second, max_new_tokens=3, do_sample=False), wanted)


@pytest.mark.skipif(transformers.__version__ < "5", reason="transformers 4 takes no encoded videos")
def test_a_video_encoded_ahead_is_pruned_as_asked_for_last(models):
    family = "qwen2_vl"
    model = models(family)
    batch = tiny_models.inputs(family, [rows_of(family)[0]])
    pixels, grid = batch.pop("pixel_values_videos"), batch["video_grid_thw"]
    with torch.no_grad():
        with enable(model, family, PruneConfig(retention_ratio=0.5)):
            encoded = model.model.get_video_features(pixels, grid, return_dict=True)
        for ratio in (0.25, 0.5):
            with enable(model, family, PruneConfig(retention_ratio=ratio)) as handle:
                model(**batch, mm_encoder_outputs={"video": encoded})
            assert handle.last.tokens_after == 10 * int(24 * ratio)
        plain = model.model.get_video_features(pixels, grid, return_dict=True)
        with (
            enable(model, family),
            pytest.raises(ValueError, match=r"^mm_encoder_outputs: got a video that was encoded while pruning was not"),
        ):
            model(**batch, mm_encoder_outputs={"video": plain})


def test_default_parameters_are_the_official_ones(models, head):
    for family in tiny_models.FAMILIES:
        preset = PruneConfig.llava_onevision() if family == "llava_onevision" else PruneConfig.qwen2_vl()
        with enable(models(family), family, None, head) as handle:
            assert handle.config == preset


@any_family
def test_new_tokens_behind_a_cached_prompt(models, head, family):
    """generate would cut the whole conversation by the length of the pruned cache: refused. The new tokens alone go."""
    model = models(family)
    batch = tiny_models.inputs(family, [rows_of(family)[0]])
    with enable(model, family, head=head):
        first = model.generate(**batch, max_new_tokens=3, do_sample=False, return_dict_in_generate=True)
        said = first.sequences[:, batch["input_ids"].shape[1] :]
        question = torch.tensor([[51, 52, 53]])
        whole = torch.cat([first.sequences, question], 1)
        cache = copy.deepcopy(first.past_key_values)
        kinds = {}
        if "mm_token_type_ids" in batch:
            kinds["mm_token_type_ids"] = torch.nn.functional.pad(batch["mm_token_type_ids"], (0, 6))
        with pytest.raises(
            ValueError, match=r"^(cache|past_key_values): got tokens that it holds already. .* from \d+ to \d+"
        ):
            model.generate(
                whole, past_key_values=cache, max_new_tokens=2, attention_mask=torch.ones_like(whole), **kinds
            )
        new = torch.cat([said[:, -1:], question], 1)
        with torch.no_grad():
            got = model(input_ids=new, past_key_values=first.past_key_values).logits[0]
    if family.startswith("qwen2") and transformers.__version__ >= "5":
        return  # whose `generate` and models number the tokens behind a long video differently
    wanted = teacher_forced(model, family, batch, QUARTER, head, [*said[0].tolist(), *question[0].tolist(), 0])
    torch.testing.assert_close(got, wanted[3:], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("ratios", [(0.25, 0.25), (0.25, 1.0), (1.0, 0.25)], ids=str)
def test_a_second_video_behind_a_cached_prompt(models, head, ratios):
    """As if both had come in one prompt."""
    family, model = "llava_onevision", models("llava_onevision")
    rows = rows_of(family)
    batch = tiny_models.inputs(family, [rows[0], rows[0]])
    turns = [row_alone(family, batch, [rows[0], rows[0]], number) for number in range(2)]
    cache = transformers.DynamicCache(config=model.config.get_text_config())
    with torch.no_grad():
        for turn, ratio in zip(turns, ratios):
            del turn["attention_mask"]  # the first turn's columns are the cache's
            with enable(model, family, PruneConfig(retention_ratio=ratio), head):
                got = model(**turn, past_key_values=cache).logits[0, -1]
    parts = [
        pruned_models.pruned(model, family, turn, PruneConfig(retention_ratio=ratio), head)
        for turn, ratio in zip(turns, ratios)
    ]
    length = turns[0]["input_ids"].shape[1]
    fed = pruned_models.Fed(
        torch.cat([part.embeddings for part in parts], 1),
        torch.cat([parts[0].positions, parts[1].positions + length], 1),
        {},
        parts[1].next_position + length,
    )
    torch.testing.assert_close(got, pruned_models.logits(model, fed)[-1], rtol=1e-4, atol=1e-4)


def test_importing_the_package_does_not_import_transformers():
    code = "import sys, fastvid_ext; sys.exit('transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


class TestRefused:
    def test_another_model(self):
        with pytest.raises(
            ValueError, match=r"^model: got Linear, want one of LlavaOnevisionFor.*, Qwen2VL.*prune_emb"
        ):
            fastvid_ext.enable(torch.nn.Linear(2, 2))

    @any_family
    def test_twice(self, models, family):
        model = models(family)
        with enable(model, family), pytest.raises(ValueError, match=r"^model: got one that is enabled already"):
            enable(model, family)
        enable(model, family).disable()

    @any_family
    def test_labels(self, models, family):
        model = models(family)
        batch = tiny_models.inputs(family, [rows_of(family)[0]])
        with enable(model, family), pytest.raises(ValueError, match=r"^labels: got labels for a prompt with a video"):
            model(**batch, labels=batch["input_ids"])
        text = tiny_models.inputs(family, [rows_of(family)[1]])
        with enable(model, family):
            assert model(**text, labels=text["input_ids"]).loss > 0

    @any_family
    def test_training_with_gradients(self, models, family):
        model = copy.deepcopy(models(family)).train()
        batch = tiny_models.inputs(family, [rows_of(family)[0]])
        with enable(model, family) as handle:
            with pytest.raises(RuntimeError, match=r"^model: got a video in training mode with gradients"):
                model(**batch)
            with torch.no_grad():
                model(**batch)
            assert handle.last is not None

    def test_ratio_and_config(self, models):
        with pytest.raises(ValueError, match=r"^retention_ratio: got 1.5"):
            enable(models("qwen2_vl"), "qwen2_vl", PruneConfig(retention_ratio=1.5))
        with pytest.raises(TypeError, match=r"^config: got 0.1, want a PruneConfig or None"):
            enable(models("qwen2_vl"), "qwen2_vl", 0.1)

    def test_missing_head(self, models):
        with pytest.raises(
            ValueError, match=r"^saliency: this model's vision tower has no SigLIP pooling head .*siglip-so"
        ):
            fastvid_ext.enable(models("llava_onevision"))

    @pytest.mark.parametrize("saliency", ["attention", 3], ids=str)
    def test_saliency_of_qwen(self, models, saliency):
        with pytest.raises(ValueError, match=r"^saliency: got .*, want None or 'norm': Qwen2VLModel"):
            fastvid_ext.enable(models("qwen2_vl"), saliency=saliency)

    def test_saliency_of_llava(self, models):
        with pytest.raises(ValueError, match=r"^saliency: got a Linear without a SigLIP pooling head"):
            fastvid_ext.enable(models("llava_onevision"), saliency=torch.nn.Linear(2, 2))
        with pytest.raises(TypeError, match=r"^saliency: got 3, want None"):
            fastvid_ext.enable(models("llava_onevision"), saliency=3)

    def test_a_head_of_other_channels(self, models):
        wide = transformers.SiglipVisionModel(
            transformers.SiglipVisionConfig(
                hidden_size=48, intermediate_size=32, num_hidden_layers=1, num_attention_heads=3, image_size=28
            )
        )
        batch = tiny_models.inputs("llava_onevision", [rows_of("llava_onevision")[0]])
        model = models("llava_onevision")
        with (
            fastvid_ext.enable(model, saliency=wide),
            torch.no_grad(),
            pytest.raises(ValueError, match=r"^saliency: the pooling head takes 48 channels, .* have 24"),
        ):
            model(**batch)
        with torch.no_grad():  # nothing is left of the call that failed
            assert model(**batch).logits.shape[1] == batch["input_ids"].shape[1]

    @any_family
    def test_masks_of_one_s_own(self, models, family):
        batch = tiny_models.inputs(family, [rows_of(family)[0]])
        length = batch["input_ids"].shape[1]
        batch["attention_mask"] = torch.ones(1, 1, length, length, dtype=torch.bool).tril()
        batch["position_ids"] = torch.arange(length)[None]
        with (
            enable(models(family), family),
            torch.no_grad(),
            pytest.raises(ValueError, match=r"^attention_mask: got shape \(1, 1, .* want \(B, L\)"),
        ):
            models(family)(**batch)
