"""What takes long or more than one process, on a GPU: python tests/soak.py PART [--seconds 300] [--calls 100000]

threads     8 threads with a stream each call all ops on mixed shapes; results bit for bit those of single calls
graphs      the same of CUDA graphs, replayed by several threads on other inputs
memory      as many small calls as --calls says, wrong ones among them: the process holds no more memory than before
second-gpu  on cuda:1 while cuda:0 is the current device, alone and beside calls on cuda:0
workers     processes forked before CUDA started, forked after (torch refuses), and spawned
digest      a hash over results of fixed inputs, to compare processes and machines; three processes have to agree

Each prints a closing line and exits with 1 where something differs, 77 where the machine has not what it takes.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import itertools
import multiprocessing
import random
import resource
import sys
import threading
import time
from collections.abc import Callable

import torch
from helpers import calls, inputs, judge

import fastvid_ext

OPS = torch.ops.fastvid
THREADS = 8
MODES = (
    {},
    {"spread_remainder": False, "merge_centers": True},
    {"thin_threshold": 0.95, "segment_threshold": 0.84, "retention_ratio": 0.27},
)
SHAPES = (
    (1, 5, 8),
    (8, 196, 256),
    (6, 49, 1152),
    (20, 50, 65),
    (3, 600, 96),
    (40, 25, 40),
    (2, 1024, 64),
    (64, 16, 33),
)
Call = Callable[[], object]


def same(one, other) -> bool:
    return all(map(judge.same_bits, calls.tensors(one), calls.tensors(other)))


def prunes(device="cuda", ops=(OPS.prune, OPS.prune_padded)) -> list[tuple[inputs.Case, Callable]]:
    """Cases of every shape, each with a dtype, a mode, a layout and an op."""
    kinds = itertools.cycle(itertools.product(inputs.DTYPES, MODES, inputs.LAYOUTS, ops))
    found = []
    for seed, (shape, (dtype, mode, layout, op)) in enumerate(zip(SHAPES * 3, itertools.islice(kinds, 5, None, 7))):
        cuts = [0, shape[0] // 2, shape[0]] if seed % 3 == 0 else None
        case = inputs.make_case(
            *shape, seed=seed, device=device, dtype=dtype, layout=layout, cu_frames=cuts, features=24, **mode
        )
        found.append((case, op))
    return found


def mixed_calls() -> list[Call]:
    """Prunes, and the ops of the stages."""
    found: list[Call] = [lambda case=case, op=op: case.run(op) for case, op in prunes()]
    for (frames, n, channels), dtype in itertools.product(SHAPES[1:5], inputs.DTYPES):
        tokens = inputs.gaussian(frames, n, channels, seed=n, device="cuda", dtype=dtype)
        density = OPS.knn_density(tokens)
        centers, _ = OPS.select_peaks(tokens, density, n // 5)
        found += [
            lambda x=tokens: OPS.knn_density(x, num_neighbors=9),
            lambda x=tokens, rho=density: OPS.select_peaks(x, rho, x.shape[1] // 5),
            lambda x=tokens, c=centers: OPS.scatter_merge(x, c),
            lambda x=tokens: OPS.segment(x[:, 0]),
        ]
    return found


def in_threads(work: Callable[[int, Callable[[], bool]], tuple[int, int]], seconds: float) -> tuple[int, int]:
    """Sums of (calls, differing results) of THREADS threads, each on a stream of its own."""
    end = time.monotonic() + seconds
    totals, errors = [], []

    def run(number: int) -> None:
        try:
            with torch.cuda.stream(torch.cuda.Stream()):
                totals.append(work(number, lambda: time.monotonic() < end))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return sum(count for count, _ in totals), sum(differing for _, differing in totals)


def soak_threads(seconds: float, **_) -> tuple[bool, str]:
    todo = mixed_calls()
    want = [call() for call in todo]
    torch.cuda.synchronize()

    def work(number, goes_on):
        rng, count, differing = random.Random(number), 0, 0
        while goes_on():
            some = rng.sample(range(len(todo)), 6)
            results = [todo[i]() for i in some]  # compared later, so that calls follow on each other
            differing += sum(not same(result, want[i]) for i, result in zip(some, results))
            count += len(some)
        return count, differing

    count, differing = in_threads(work, seconds)
    return differing == 0, f"{THREADS} threads x {THREADS} streams, {count} calls, {differing} differ from single calls"


def soak_graphs(seconds: float, **_) -> tuple[bool, str]:
    # Captured one after the other; what is replayed at once are graphs with memory of their own.
    captured = []
    for case, op in prunes(ops=(OPS.prune_padded,))[: 2 * THREADS]:
        sources = [case.tokens.roll(k, 0) for k in range(3)]
        want = []
        for source in sources:
            case.tokens.copy_(source)
            want.append(case.run(op))
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            got = case.run(op)
        captured.append((graph, case.tokens, sources, got, want))
    torch.cuda.synchronize()

    def work(number, goes_on):
        rng, count, differing = random.Random(number), 0, 0
        while goes_on():
            graph, static, sources, got, want = captured[number * 2 + rng.randrange(2)]
            which = rng.randrange(3)
            static.copy_(sources[which])
            for result in got:
                result.fill_(-7)
            graph.replay()
            differing += not same(got, want[which])
            count += 1
        return count, differing

    count, differing = in_threads(work, seconds)
    return differing == 0, f"{len(captured)} graphs in {THREADS} threads, {count} replays, {differing} differ"


def held_memory() -> tuple[int, int, int]:
    """Bytes that tensors hold, that the allocator holds, and the most that the process ever held on the host."""
    torch.cuda.synchronize()
    host = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return torch.cuda.memory_allocated(), torch.cuda.memory_reserved(), host


def soak_memory(calls_to_make: int, **_) -> tuple[bool, str]:
    todo = [call for call in mixed_calls() if call() is not None]
    wrong = [(op, name) for op, names in calls.PARAMETERS.items() for name in names]
    rng, refused, before = random.Random(0), 0, None
    for count in range(calls_to_make):
        if count == min(5_000, calls_to_make // 4):
            before = held_memory()
        if count % 50 == 0:
            op, name = wrong[count // 50 % len(wrong)]
            value = rng.choice(calls.wrong_values(op, name, "cuda"))
            with contextlib.suppress(RuntimeError, TypeError, ValueError):
                getattr(OPS, op)(**{**calls.all_arguments(op, "cuda"), name: value})
                raise AssertionError(f"{op} took {name}={value!r}")
            refused += 1
        else:
            rng.choice(todo)()
    after = held_memory()
    grown = [late - early for late, early in zip(after, before)]
    flat = grown[0] == 0 and grown[1] <= 0 and grown[2] < 8 * 2**20
    text = f"{calls_to_make} calls, {refused} of them refused; grown by {grown[0]} bytes of tensors, {grown[1]} of the "
    return flat, text + f"allocator, {grown[2] / 2**20:.1f} MiB of the host"


def soak_second_gpu(**_) -> tuple[bool, str] | None:
    if torch.cuda.device_count() < 2:
        return None
    torch.cuda.set_device(0)
    differing, count = 0, 0
    for (here, op), (there, _) in zip(prunes("cuda:0"), prunes("cuda:1")):
        want = here.run(op)
        results = [(there.run(op), here.run(op), there.run(op)) for _ in range(5)]
        for far, near, again in results:
            count += 3
            assert all(x.device == torch.device("cuda", 1) for x in (*far, *again))
            differing += sum(not same([x.to("cuda:0") for x in result], want) for result in (far, near, again))
    assert torch.cuda.current_device() == 0
    return differing == 0, f"{count} calls on cuda:1 and cuda:0 in turn, {differing} differ from cuda:0 alone"


# ---- processes -----------------------------------------------------------------------------------------------------


def digest() -> str:
    """A hash of results, of inputs that are the same on every machine."""
    total = hashlib.sha256()
    for seed, (shape, dtype, mode) in enumerate(itertools.product(SHAPES, inputs.DTYPES, MODES)):
        whole = torch.randint(-512, 513, shape, generator=inputs.generator(seed))
        saliency = torch.randint(0, 4096, shape[:2], generator=inputs.generator(seed + 1))
        config = inputs.PruneConfig(**mode)
        result = OPS.prune((whole / 256).to("cuda", dtype), (saliency / 64).to("cuda"), **config.to_kwargs())
        for x in result:
            total.update(x.contiguous().view(torch.uint8).cpu().numpy().tobytes())
    return total.hexdigest()


def in_process(method: str, work: Callable, *args, seconds: float = 180.0):
    """What `work` returns in a process of its own; its exception as a text."""
    context = multiprocessing.get_context(method)
    receive, send = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(send, work, args))
    process.start()
    send.close()
    try:
        if not receive.poll(seconds):
            return f"no answer within {seconds:.0f} s"
        return receive.recv()
    except EOFError:
        process.join()
        return f"died with {process.exitcode}"
    finally:
        process.kill()
        process.join()


def _answer(send, work: Callable, args: tuple) -> None:
    try:
        send.send(work(*args))
    except BaseException as error:
        send.send(f"{type(error).__name__}: {error}")


def prune_inherited(case: inputs.Case) -> str:
    case.run(OPS.prune_padded)
    return "computed"


def soak_workers(**_) -> tuple[bool, str]:
    forked = in_process("fork", digest)  # before this process touches CUDA
    case = prunes()[1][0]
    here, spawned = digest(), in_process("spawn", digest)
    late = [in_process("fork", digest), in_process("fork", prune_inherited, case)]
    again = digest()
    good = forked == here == spawned == again and all(text.split(":")[0].endswith("Error") for text in late)
    return (
        good,
        f"forked before CUDA, spawned and parent agree: {forked == here == spawned == again}; forked after: {late}",
    )


def soak_digest(**_) -> tuple[bool, str]:
    found = {in_process("spawn", digest) for _ in range(3)}
    torch_and_device = f"torch {torch.__version__}, {torch.cuda.get_device_name()}"
    return len(found) == 1, f"3 processes, fastvid_ext {fastvid_ext.__version__}, {torch_and_device}: {' '.join(found)}"


PARTS = {
    "threads": soak_threads,
    "graphs": soak_graphs,
    "memory": soak_memory,
    "second-gpu": soak_second_gpu,
    "workers": soak_workers,
    "digest": soak_digest,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--seconds", type=float, default=300.0, help="of threads and graphs")
    parser.add_argument("--calls", type=int, default=100_000, help="of memory")
    options = parser.parse_args()
    torch.set_num_threads(1)  # the host has little to compute, and a forked process must not wait for lost threads
    begin = time.monotonic()
    verdict = PARTS[options.part](seconds=options.seconds, calls_to_make=options.calls)
    if verdict is None:
        print(f"{options.part}: not run, one GPU here")
        return 77
    good, text = verdict
    print(f"{options.part}: {text}; {time.monotonic() - begin:.0f} s")
    return int(not good)


if __name__ == "__main__":
    sys.exit(main())
