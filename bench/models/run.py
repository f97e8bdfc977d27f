"""Measures the models in turn and writes what was found."""

from __future__ import annotations

import argparse
import collections
import contextlib
import gc
import itertools
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

import fastvid_ext
from fastvid_ext import PruneConfig, _library, reference, retained_count
from fastvid_ext.demo.report import prefill_tflops
from fastvid_ext.models import Handle

from . import report
from .build import Layout, build, prompt
from .llava_video import LlavaVideo

__all__ = ["run"]

REPEATS = (1, 5)  # least and most, behind one that does not count
SECONDS = 6.0  # for the repeats of one row
DECODED = 12
Row = dict[str, Any]


class Clock:
    """Marks in time, each the beginning of a phase: on the device's stream where that is a GPU."""

    def __init__(self, device: torch.device) -> None:
        self.on_gpu = device.type == "cuda"
        self.marks: list[tuple[str, Any]] = []

    def mark(self, phase: str) -> None:
        if self.on_gpu:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self.marks.append((phase, event))
        else:
            self.marks.append((phase, time.perf_counter()))

    def synchronize(self) -> float:
        if self.on_gpu:
            torch.cuda.synchronize()
        return time.perf_counter()

    def phases(self) -> dict[str, float]:
        """Milliseconds of each phase between the first mark and the last; the marks are forgotten."""
        self.synchronize()
        found: dict[str, float] = collections.defaultdict(float)
        for (phase, a), (_, b) in itertools.pairwise(self.marks):
            found[phase] += a.elapsed_time(b) if self.on_gpu else (b - a) * 1e3
        self.marks = []
        return found


class Transformers:
    """A model of transformers, pruned by `fastvid_ext.enable`."""

    def __init__(self, model: nn.Module, head: nn.Module | None) -> None:
        self.model, self.head = model, head

    @contextlib.contextmanager
    def pruned(self, config: PruneConfig | None, clock: Clock) -> Iterator[Callable[[], int | None]]:
        """In it, passes are pruned and mark the clock before and behind the pruning; gives the tokens kept."""
        inner, prune = self.model.model, Handle._prune

        def marked(handle: Handle, videos: list[Any]) -> None:
            clock.mark("prune")
            prune(handle, videos)
            clock.mark("vision")

        def before(phase: str) -> Any:
            return inner.language_model.register_forward_pre_hook(lambda *_: clock.mark(phase))

        with contextlib.ExitStack() as stack:
            handle = None
            if config is not None:
                stack.enter_context(mock.patch.object(Handle, "_prune", marked))
                stack.callback(before("prune").remove)
                handle = stack.enter_context(fastvid_ext.enable(self.model, config, saliency=self.head))
            stack.callback(before("prefill").remove)
            yield lambda: None if handle is None else handle.last.videos[0].tokens_after

    def prefill(self, inputs: dict[str, Tensor]) -> Any:
        return self.model(**inputs, use_cache=True, logits_to_keep=1)

    def decode(self, token: Tensor, cache: Any) -> Any:
        return self.model(input_ids=token, past_key_values=cache, use_cache=True, **self._place(token, cache))

    def _place(self, token: Tensor, cache: Any) -> dict[str, Tensor]:
        """What `generate` hands transformers 4 with each token; what it says does not change the time."""
        if not hasattr(self.model, "_get_initial_cache_position"):
            return {}
        return {"cache_position": torch.tensor([cache.get_seq_length()], device=token.device)}


@torch.inference_mode()
def measure(runner: Any, inputs: dict[str, Tensor], config: PruneConfig | None, clock: Clock) -> Row:
    """One row; see the package's docstring."""
    samples: list[dict[str, float]] = []
    begin = time.perf_counter()
    with runner.pruned(config, clock) as kept:
        while len(samples) <= REPEATS[0] or (len(samples) <= REPEATS[1] and time.perf_counter() - begin < SECONDS):
            output = cache = token = None  # of the pass before
            if clock.on_gpu:
                torch.cuda.reset_peak_memory_stats()
            start = clock.synchronize()
            clock.mark("vision")
            output = runner.prefill(inputs)
            clock.mark("end")
            token = output.logits[:, -1].argmax(-1, keepdim=True)
            total = (clock.synchronize() - start) * 1e3
            samples.append(clock.phases() | {"ttft": total})
        # Not max_memory_allocated, which counts what the allocator rounds up to.
        peak = torch.cuda.memory_stats()["requested_bytes.all.peak"] if clock.on_gpu else None
        tokens_after, cache = kept(), output.past_key_values
        size = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
        output = None
        decode = _decode_ms(runner, token, cache, clock)
        clock.marks = []
    times = {phase: statistics.median(sample[phase] for sample in samples[1:]) for phase in samples[0]}
    return {
        "vision_ms": times["vision"],
        "prune_ms": times["prune"] if config is not None else None,
        "prefill_ms": times["prefill"],
        "ttft_ms": times["ttft"],
        "decode_ms": decode,
        "peak_bytes": peak,
        "kv_bytes": size,
        "tokens_after": tokens_after,
    }


def _decode_ms(runner: Any, token: Tensor, cache: Any, clock: Clock) -> float:
    """Median wall time of a token, the second time that the cache has these lengths: kernels are chosen by length."""
    for _ in range(2):
        times = [clock.synchronize()]
        for _ in range(DECODED):
            runner.decode(token, cache)
            times.append(clock.synchronize())
        cache.crop(-DECODED)
    return statistics.median(b - a for a, b in itertools.pairwise(times)) * 1e3


def _rows(args: argparse.Namespace) -> list[tuple[int, str, float | None]]:
    """(batch, path, retention ratio), what tells most first."""
    chosen: list[tuple[int, str, float | None]] = []
    for batch in args.batches:
        chosen += [(batch, "none", None), *((batch, "kernels", ratio) for ratio in args.ratios)]
    return chosen + [(batch, "reference", ratio) for ratio in args.ratios for batch in args.batches]


def _measure_model(name: str, args: argparse.Namespace, device: torch.device, keep: Callable[[Row], None]) -> None:
    begin = time.perf_counter()
    torch.manual_seed(0)
    model, layout, head = build(name, args.tiny, device)
    runner = LlavaVideo(model, layout, head) if name == "llava_video" else Transformers(model, head)
    clock = Clock(device)
    clock.synchronize()
    print(f"{name}: built in {time.perf_counter() - begin:.1f} s", flush=True)
    made: tuple[int, dict[str, Tensor]] = (0, {})
    for batch, path, ratio in _rows(args):
        if time.perf_counter() - begin > args.seconds:
            print(f"{name}: out of time before batch {batch}, {path}, r={ratio}", flush=True)
            break
        if made[0] != batch:
            made = (0, {})
            made = (batch, prompt(model, layout, batch))
        config = None if ratio is None else layout.preset(retention_ratio=ratio)
        with contextlib.ExitStack() as plain:
            for op in ("segment", "plan", "prune_padded") if path == "reference" else ():
                plain.enter_context(mock.patch.object(torch.ops.fastvid, op, getattr(reference, op)))
            row = measure(runner, made[1], config, clock)
        keep(_described(name, layout, model, batch, path, ratio, config) | row)


def _described(
    name: str, layout: Layout, model: nn.Module, batch: int, path: str, ratio: float | None, config: PruneConfig | None
) -> Row:
    frames, height, width = layout.grid
    count = frames * height * width
    text = model.config.get_text_config()
    tflops = prefill_tflops(
        count if config is None else retained_count(frames, height * width, config),
        layers=text.num_hidden_layers,
        hidden=text.hidden_size,
        mlp=text.intermediate_size,
        heads=text.num_attention_heads,
        kv_heads=text.num_key_value_heads,
    )
    return {
        "model": name,
        "path": path,
        "batch": batch,
        "retention_ratio": ratio,
        "frames": frames,
        "tokens_per_frame": height * width,
        "tokens_before": count,
        "tflops": round(tflops, 2) if tflops >= 0.01 else tflops,
    }


def run(args: argparse.Namespace, results: Path, git: str | None) -> int:
    device = torch.device(args.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if device.type == "cuda" and _library.status.cuda_off:
        print(f"python -m bench.models: CUDA is off: {_library.status.cuda_off}", file=sys.stderr)
        return 2
    where = torch.cuda.get_device_name() if device.type == "cuda" else f"CPU with {torch.get_num_threads()} threads"
    out = args.out
    if out is None and not args.tiny:
        out = results / f"{where.lower().split()[-1] if device.type == 'cuda' else 'cpu'}_models.json"
    import transformers

    about = {"device": where, "torch": torch.__version__, "transformers": transformers.__version__, "git": git}
    rows = report.read(out)
    failures = []

    def keep(row: Row) -> None:
        # A row that was measured again takes the place of the one before.
        rows[:] = [old for old in rows if report.key(old) != report.key(row)] + [row | about]
        print(report.line(row), flush=True)
        if out is not None:
            report.write(out, rows)

    for name in args.models:
        try:
            _measure_model(name, args, device, keep)
        except Exception as error:  # the other models can still be measured
            traceback.print_exc()
            failures.append(f"{name}: {type(error).__name__}: {error}")
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
    print("", *report.table(rows), "", *report.findings(rows), sep="\n")
    if out is not None:
        report.present(out)
    print(*(f"FAILED {failure}" for failure in failures), sep="\n", file=sys.stderr)
    return 1 if failures else 0
