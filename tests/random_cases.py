"""Random cases against float64: python tests/random_cases.py [--device cpu] [--cases 20000] [--workers 14] [--out FILE]

Every case is drawn as in tests/test_shapes.py. The judge of tests/helpers/judge.py takes every choice of its result up
against float64: one that differs has to lie on a near tie, by the rule of docs/algorithm.md, or the case counts as
wrong. Of the bf16 cases it is also counted how many keep other tokens than the same computation in float64 does, for
the kernels and for an eager implementation whose sums, products and comparisons are bf16; kernels must not be worse.

Prints a line of counts, and every wrong case, so that it can be made again. Exit code 1: one was wrong.
"""

from __future__ import annotations

import argparse
import collections
import json
import multiprocessing
import sys
import time
from unittest import mock

import torch
from helpers import inputs, judge, strategies
from hypothesis import HealthCheck, Phase, given, seed, settings

import fastvid_ext
from fastvid_ext import reference

FAMILY = 20261122  # of the seeds


def kept_by(case: inputs.Case, dtype: torch.dtype) -> torch.Tensor:
    """Indices that the reference keeps when all of it is computed in `dtype`."""
    features = case.frame_features
    args = case.tokens.to(dtype), case.saliency, None if features is None else features.to(dtype), case.cu_frames
    with mock.patch.object(reference, "_accumulated", lambda x: x):
        return reference.prune(*args, **case.config.to_kwargs())[1]


def try_case(drawn: strategies.Drawn, device: str, counts: collections.Counter) -> None:
    case = drawn.case("cpu")
    result = [x.cpu() for x in drawn.case(device).run()]
    doubts = judge.check_case(case, result)
    in_float64 = kept_by(case, torch.float64)
    counts["near_tie"] += doubts > 0
    counts["choices_on_a_near_tie"] += doubts
    if doubts == 0:
        assert torch.equal(result[1], in_float64), "no near tie, but other tokens than in float64"
    if drawn.dtype == torch.bfloat16:
        counts["bf16"] += 1
        counts["bf16_differs"] += not torch.equal(result[1], in_float64)
        counts["eager_bf16_differs"] += not torch.equal(kept_by(case, torch.bfloat16), in_float64)


def run_cases(device: str, cases: int, worker: int) -> tuple[collections.Counter, list[str]]:
    torch.set_num_threads(1)
    counts, wrong = collections.Counter(), []

    @seed(FAMILY + worker)
    @settings(
        max_examples=cases,
        phases=[Phase.generate],
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(strategies.videos(elements=30_000, pairs=300_000))
    def every_case(drawn):
        counts["cases"] += 1
        try:
            try_case(drawn, device, counts)
        except judge.TooManyTiesError:
            counts["near_tie"] += 1
            counts["ties_not_tried"] += 1
        except Exception as error:
            wrong.append(f"{drawn}: {type(error).__name__}: {error}")

    every_case()
    return counts, wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", help="cuda or cpu")
    parser.add_argument("--cases", type=int, default=20_000)
    parser.add_argument("--workers", type=int, default=14, help="processes")
    parser.add_argument("--out", help="JSON file of the counts")
    options = parser.parse_args()

    begin = time.monotonic()
    shares = [options.cases // options.workers + (i < options.cases % options.workers) for i in range(options.workers)]
    with multiprocessing.get_context("spawn").Pool(options.workers) as pool:
        parts = pool.starmap(run_cases, [(options.device, share, i) for i, share in enumerate(shares) if share])
    counts = sum((part for part, _ in parts), collections.Counter())
    wrong = [line for _, lines in parts for line in lines]
    for line in wrong:
        print("WRONG:", line)
    worse = counts["bf16_differs"] > counts["eager_bf16_differs"]
    name = torch.cuda.get_device_name() if options.device == "cuda" else "CPU"
    print(
        f"random cases, {name}: {counts['cases']} against float64, {counts['near_tie']} with a choice on a near tie "
        f"({counts['ties_not_tried']} with more of them than can be tried), {len(wrong)} wrong; of {counts['bf16']} in "
        f"bf16 {counts['bf16_differs']} keep other tokens than float64, eager bf16 {counts['eager_bf16_differs']}; "
        f"{time.monotonic() - begin:.0f} s"
    )
    if options.out:
        with open(options.out, "w") as file:
            record = {"device": name, "fastvid_ext": fastvid_ext.__version__, **counts, "wrong": wrong}
            json.dump(record, file, indent=1)
    return int(bool(wrong) or worse or counts["cases"] < options.cases)


if __name__ == "__main__":
    sys.exit(main())
