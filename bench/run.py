"""Measures the cases in turn and writes what was found."""

from __future__ import annotations

import argparse
import importlib.util
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

import fastvid_ext
from fastvid_ext import _library

from . import inputs, report, timing
from .cases import Case, cases

__all__ = ["run"]

RESULTS = Path(__file__).resolve().parent / "results"
COLD_L2S = 4  # the inputs of the cold calls together, in L2s
SETS_ON_GPU = (3, 64)
REFERENCE_SECONDS = 0.3


class Bench:
    """One run on one device; `rows`, `kernels` and `about` fill up as it goes."""

    def __init__(self, device: str, git: str | None, quick: bool, compile_seconds: float) -> None:
        self.device = torch.device(device)
        self.git = git
        self.quick = quick
        self.compile_seconds = compile_seconds
        self.rows: list[dict[str, Any]] = []
        self.kernels: list[dict[str, Any]] = []
        self.failures: list[str] = []
        self.bandwidth = timing.copy_bandwidth(self.device)
        self.about = [
            f"{self.device_name}, torch {torch.__version__}, fastvid_ext {fastvid_ext.__version__}, git {git}",
            f"copy bandwidth {self.bandwidth / 1e9:.0f} GB/s, read and write counted",
        ]
        if self.on_gpu:
            latency = timing.launch_latency_us()
            self.about.append(f"a dependent kernel that does nothing takes {latency:.2f} us in a graph")

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"

    @property
    def device_name(self) -> str:
        return torch.cuda.get_device_name() if self.on_gpu else f"CPU with {torch.get_num_threads()} threads"

    def each(self, chosen: Sequence[Case], measure: Callable[[Case], None]) -> None:
        """A case that fails is told and left out; the others go on."""
        for case in chosen:
            try:
                measure(case)
            except Exception as error:
                name = f"{case.op} {case.mode} {case.shape} {case.dtype}"
                self.failures.append(f"{name}: {_told(error)}")
                if len(self.failures) == 1:  # an error of the device comes back from every later call
                    traceback.print_exc()

    def measure(self, case: Case) -> None:
        call, sets = inputs.call_of(case), self._sets(case)
        size = inputs.nbytes(sets[0])
        moved = size + inputs.nbytes(call.op(*sets[0]))
        row = dict.fromkeys(("gpu_us", "gpu_us_warm", "floor_us", "eager_us", "reference_us", "compiled_reference_us"))
        row |= {"peak_extra_bytes": None, "git": self.git, "spread_us": None, "eager_spread_us": None}
        row |= {"target_us": case.target_us, "stretch_us": case.stretch_us, "floor_us": moved / self.bandwidth * 1e6}
        if self.on_gpu:
            small = len(sets) * size < COLD_L2S * timing.l2_bytes()
            cold = timing.replay_time(call.op, sets, flush_l2=small)
            row |= {"gpu_us": cold.median_us, "spread_us": cold.spread_us}
            row["gpu_us_warm"] = timing.replay_time(call.op, sets[:1], reuse_outputs=True).median_us
            row["peak_extra_bytes"] = timing.peak_extra_bytes(call.op, sets[0])
        eager = timing.wall_time(call.public, sets)
        row |= {"eager_us": eager.median_us, "eager_spread_us": eager.spread_us}
        if not self.quick:
            row["reference_us"] = timing.wall_time(
                call.reference, sets, seconds=REFERENCE_SECONDS, runs=(3, 50), warm_up=1
            ).median_us
        self.rows.append(case.fields() | row)
        print(_line(self.rows[-1]), flush=True)

    def measure_compiled(self, case: Case) -> None:
        """Adds to the case's row; what torch.compile made of the reference goes into `about`."""
        row = next((row for row in self.rows if case.fields().items() <= row.items()), None)
        if row is None or self.compile_seconds <= 0:
            return
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        call = inputs.call_of(case)
        # Plans, and with them the shapes inside of prune, differ from video to video: these two see one only.
        sets = self._sets(case, most=1 if case.op in ("plan", "prune") else None)
        compiled = torch.compile(call.plain_reference, dynamic=False)
        name, begin = f"{case.op} {case.frames} x {case.tokens_per_frame}", time.perf_counter()
        try:
            with timing.time_limit(self.compile_seconds):
                for _ in range(3):
                    compiled(*sets[0], **call.parameters)
                compiling = time.perf_counter() - begin
                row["compiled_reference_us"] = timing.wall_time(
                    lambda *args: compiled(*args, **call.parameters), sets, seconds=REFERENCE_SECONDS, runs=(3, 50)
                ).median_us
            breaks = sum(torch._dynamo.utils.counters["graph_break"].values())
            graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
            outcome = f"{graphs} graphs, {breaks} graph breaks, {compiling:.0f} s to compile"
        except timing.TimeLimitError:
            outcome = "not compiled within the time that was left for it"
        except Exception as error:
            outcome = f"failed: {_told(error)}"
        self.compile_seconds -= time.perf_counter() - begin
        self.about.append(f"reference under torch.compile, {name}: {outcome}")
        print(self.about[-1], flush=True)

    def profile(self, case: Case) -> None:
        name = f"{case.mode} {case.frames} x {case.tokens_per_frame}"
        for kernel in timing.kernel_times(inputs.call_of(case).op, self._sets(case)):
            names = {"case": name, "kernel": report.short_name(kernel.name), "stage": report.stage_of(kernel.name)}
            self.kernels.append(names | {"launches": kernel.launches, "us": kernel.median_us})

    def _sets(self, case: Case, most: int | None = None) -> list[tuple]:
        """Argument sets: on a GPU as many as together exceed the L2 by far, where that is not too many."""
        sets = [inputs.make(case, 0, self.device)]
        count = 2
        if self.on_gpu:
            fitting = -(-COLD_L2S * timing.l2_bytes() // max(1, inputs.nbytes(sets[0])))
            count = min(max(fitting, SETS_ON_GPU[0]), SETS_ON_GPU[1])
        return sets + [inputs.make(case, seed, self.device) for seed in range(1, min(count, most or count))]


def run(args: argparse.Namespace, git: str | None) -> int:
    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device == "cuda" and _library.status.cuda_off:
        print(f"python -m bench: CUDA is off: {_library.status.cuda_off}", file=sys.stderr)
        return 2
    if unknown := set(args.ops or ()) - set(_library.OPS):
        print(f"python -m bench: --ops: got {', '.join(unknown)}, want of {', '.join(_library.OPS)}", file=sys.stderr)
        return 2
    begin = time.perf_counter()
    chosen = [case for case in cases(device, args.quick) if not args.ops or case.op in args.ops]
    compile_seconds = args.compile_seconds
    if compile_seconds is None:
        compile_seconds = 60.0 if device == "cuda" else 0.0
    bench = Bench(device, git, args.quick, compile_seconds)
    out = args.out
    if out is None and not args.quick and not args.ops:
        out = RESULTS / f"{'cpu' if device == 'cpu' else bench.device_name.lower().split()[-1]}.json"
    try:
        bench.each(chosen, bench.measure)
        if out is not None:
            report.write_json(out, bench.rows)
        if not args.quick:
            # By size, and prune last: its many graphs take what time is left.
            slow = [case for case in chosen if case.compiled]
            bench.each(sorted(slow, key=lambda case: (case.op == "prune", case.frames)), bench.measure_compiled)
            if bench.on_gpu:  # last, since a profiler may slow down what comes after it
                bench.each([case for case in chosen if case.target_us is not None], bench.profile)
    finally:  # what was measured until then is not lost
        print("", report.table(bench.rows), "", *bench.about, sep="\n")
        print("", *(f"{'met   ' if met else 'MISSED'} {text}" for met, text in report.checks(bench.rows)), sep="\n")
        if out is not None:
            write(out, bench)
        print(f"{time.perf_counter() - begin:.0f} s")
    print(*(f"FAILED {failure}" for failure in bench.failures), sep="\n", file=sys.stderr)
    return 1 if bench.failures else 0


def write(out: Path, bench: Bench) -> None:
    report.write_json(out, bench.rows)
    if bench.kernels:
        report.write_json(out.with_name(f"{out.stem}_kernels.json"), bench.kernels)
    report.write_markdown(out.with_suffix(".md"), bench.rows, bench.kernels, bench.about)
    print(f"wrote {out}")
    if importlib.util.find_spec("matplotlib") is None:
        print(f"no matplotlib here: python -m bench draw {out} draws the pictures elsewhere")
        return
    from .draw import draw

    draw(out)


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"


def _line(row: dict[str, Any]) -> str:
    keys = ("gpu_us", "spread_us", "gpu_us_warm", "floor_us", "eager_us", "reference_us")
    times = "  ".join(f"{key.removesuffix('_us')} {row[key]:.2f}" for key in keys if row[key] is not None)
    return f"{row['op']:13} {row['mode']:21} {row['T']:4} x {row['N']:3} r={row['retention_ratio']:<4g} {times}"
