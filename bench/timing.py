"""Clocks: CUDA graph replays for GPU time, wall time for what Python sees, and peak memory."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import signal
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

__all__ = [
    "KernelTime",
    "TimeLimitError",
    "Timing",
    "Turns",
    "copy_bandwidth",
    "kernel_times",
    "l2_bytes",
    "launch_latency_us",
    "peak_extra_bytes",
    "replay_time",
    "time_limit",
    "wall_time",
]

CALLS_PER_REPLAY = 16  # at least: shares out what starting a graph costs
WARM_UP_SECONDS = 0.03  # the clocks of an idle GPU are low
MEASURE_SECONDS = 0.12
REPLAYS = (15, 150)
ArgumentSets = Sequence[tuple[Any, ...]]


@dataclasses.dataclass(frozen=True)
class Timing:
    """Median, and the distance from the 10th to the 90th percentile, in microseconds."""

    median_us: float
    spread_us: float

    @classmethod
    def of(cls, samples_us: Sequence[float]) -> Timing:
        deciles = statistics.quantiles(samples_us, n=10, method="inclusive") if len(samples_us) > 1 else [0.0]
        return cls(statistics.median(samples_us), deciles[-1] - deciles[0])


@dataclasses.dataclass(frozen=True)
class KernelTime:
    """A kernel within a call: its full name, how often a call launches it, and the median time of one launch.

    That is the time from its own start or the end of the kernel before, whichever is later, to its end: a kernel that
    is launched early (programmatic dependent launch) starts by waiting.
    """

    name: str
    launches: float
    median_us: float


class Turns:
    """Calls a function on one argument set after the other, forever."""

    def __init__(self, function: Callable, sets: ArgumentSets) -> None:
        self.function = function
        self.sets = itertools.cycle(sets)

    def __call__(self) -> Any:
        return self.function(*next(self.sets))


def l2_bytes() -> int:
    return torch.cuda.get_device_properties(0).L2_cache_size


def replay_time(
    function: Callable, sets: ArgumentSets, *, flush_l2: bool = False, reuse_outputs: bool = False
) -> Timing:
    """GPU time of one call: a graph calls `function` on all sets in turn and is replayed.

    Args:
        flush_l2: read a large buffer before each replay, where the sets together do not exceed the L2 by far.
        reuse_outputs: let a call write where the one before it wrote. Otherwise each writes to memory of its own.
    """
    calls = len(sets) * -(-CALLS_PER_REPLAY // len(sets))
    turns = Turns(function, sets)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):  # loads the kernels, which a capture must not
            turns()
    torch.cuda.current_stream().wait_stream(stream)
    turns = Turns(function, sets)
    graph, outputs = torch.cuda.CUDAGraph(), []
    with torch.cuda.graph(graph):
        for _ in range(calls):
            output = turns()
            if not reuse_outputs:
                outputs.append(output)
            del output
    flush = torch.zeros(l2_bytes(), dtype=torch.float32, device="cuda") if flush_l2 else None  # 4 x L2 in bytes

    def replays(count: int) -> list[float]:
        events = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(count)]
        for begin, end in events:
            if flush is not None:
                flush.sum()
            begin.record()
            graph.replay()
            end.record()
        torch.cuda.synchronize()
        return [begin.elapsed_time(end) * 1e3 / calls for begin, end in events]

    warm_up_ends, samples = time.perf_counter() + WARM_UP_SECONDS, replays(2)
    while time.perf_counter() < warm_up_ends:
        samples = replays(5)
    fitting = int(MEASURE_SECONDS * 1e6 / (statistics.median(samples) * calls))
    timing = Timing.of(replays(min(max(fitting, REPLAYS[0]), REPLAYS[1])))
    graph.reset()
    return timing


def wall_time(
    function: Callable,
    sets: ArgumentSets,
    *,
    seconds: float = 0.15,
    runs: tuple[int, int] = (10, 300),
    warm_up: int = 5,
) -> Timing:
    """Wall time of one call, synchronized, as many runs as fit into `seconds` within the bounds of `runs`."""
    synchronize = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    turns = Turns(function, sets)
    for _ in range(warm_up):
        turns()
    samples: list[float] = []
    ends = time.perf_counter() + seconds
    while len(samples) < runs[0] or (time.perf_counter() < ends and len(samples) < runs[1]):
        synchronize()
        begin = time.perf_counter()
        output = turns()
        synchronize()
        samples.append((time.perf_counter() - begin) * 1e6)
        del output
    return Timing.of(samples)


def peak_extra_bytes(function: Callable, arguments: tuple[Any, ...]) -> int:
    """Device memory at its highest during a call, less what was there before and what the call returns."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    output = function(*arguments)
    torch.cuda.synchronize()
    extra = torch.cuda.max_memory_allocated() - torch.cuda.memory_allocated()
    del output
    return extra


def copy_bandwidth(device: torch.device) -> float:
    """Bytes read and written a second by a copy much larger than any cache."""
    size = 2**31 if device.type == "cuda" else 2**27
    source = torch.empty(size, dtype=torch.uint8, device=device).random_()
    target = torch.empty_like(source)
    if device.type == "cpu":
        return 2 * size / wall_time(target.copy_, [(source,)], runs=(5, 20)).median_us * 1e6
    # Not in a graph, whose copy nodes may go to the copy engines: those are slower than the multiprocessors.
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    samples = []
    for _ in range(12):
        begin.record()
        target.copy_(source)
        end.record()
        torch.cuda.synchronize()
        samples.append(begin.elapsed_time(end) / 1e3)
    return 2 * size / statistics.median(samples)


def launch_latency_us() -> float:
    """GPU time of a kernel in a graph that waits for the one before and does nothing to speak of."""
    return replay_time(torch.ones(1, device="cuda").add_, [(1,)] * 64, reuse_outputs=True).median_us


def kernel_times(function: Callable, sets: ArgumentSets, calls: int = 24) -> list[KernelTime]:
    """The kernels of an eager call, by torch.profiler, in order of first launch."""
    turns = Turns(function, sets)
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    for _ in range(3):
        turns()
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=activities) as profile:
        for _ in range(calls):
            turns()
        torch.cuda.synchronize()
    found: dict[str, list[float]] = {}
    launches = [event for event in profile.events() if event.device_type == torch.autograd.DeviceType.CUDA]
    last_end = float("-inf")
    for event in sorted(launches, key=lambda event: event.time_range.start):
        start, end = max(event.time_range.start, last_end), event.time_range.end
        found.setdefault(event.name, []).append(max(0.0, end - start))
        last_end = max(last_end, end)
    return [KernelTime(name, len(times) / calls, statistics.median(times)) for name, times in found.items()]


class TimeLimitError(BaseException):
    """Past all handlers of Exception, of which a compiler has many."""


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raises TimeLimitError in the main thread when the body takes longer."""

    def expired(*_):
        raise TimeLimitError

    previous = signal.signal(signal.SIGALRM, expired)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 1e-3))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
