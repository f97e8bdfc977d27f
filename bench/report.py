"""Tables and files of results. No torch here: what was measured elsewhere can be drawn and read anywhere."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

__all__ = [
    "OFFICIAL_US",
    "STAGE_OF_KERNEL",
    "checks",
    "official_us",
    "stage_of",
    "table",
    "write_json",
    "write_markdown",
]

Row = dict[str, Any]

# The official code, eager, wall time on an NVIDIA H200 (torch 2.11, bf16, D = 3584), by (T, N, retention ratio).
OFFICIAL_US = {
    (8, 196, 0.1): 2730,
    (32, 196, 0.1): 7100,
    (32, 196, 0.25): 11400,
    (128, 196, 0.1): 17000,
    (512, 196, 0.1): 77100,
    (64, 169, 0.1): 41300,
    (384, 144, 0.27): 33700,
}
CITE_OFFICIAL = "official code, measured on the same kind of GPU"

SEGMENT, PEAKS, MERGE = "segment + plan", "knn_density + select_peaks", "scatter_merge"
STAGE_OF_KERNEL = {  # by a part of the kernel's name, the first that fits
    "assign": MERGE,
    "merge": MERGE,
    "gram": PEAKS,
    "density_peaks": PEAKS,
    "features": SEGMENT,
    "similarity": SEGMENT,
    "segment": SEGMENT,
    "plan": SEGMENT,
}


def stage_of(kernel: str) -> str:
    """The stage that a kernel belongs to; "other" for copies and kernels of torch."""
    name = short_name(kernel)
    return next((stage for part, stage in STAGE_OF_KERNEL.items() if part in name), "other")


def short_name(kernel: str) -> str:
    """``similarity`` of ``void fastvid::(anonymous namespace)::similarity_kernel(fastvid::...)``."""
    name = kernel.replace("(anonymous namespace)", "").split("<")[0].split("(")[0]
    return name.split("::")[-1].removeprefix("void ").removesuffix("_kernel").strip()


def official_us(row: Row) -> float | None:
    """What the official code takes for the same work; it has one variant a model, and one video a call."""
    known = row["op"].startswith("prune") and row["mode"] in ("default", "llava_onevision", "qwen2_5_vl")
    same = row["D"] == 3584 and row["dtype"] == "bfloat16"
    return OFFICIAL_US.get((row["T"], row["N"], row["retention_ratio"])) if known and same else None


def table(rows: Sequence[Row]) -> str:
    """All rows as aligned text."""
    columns = [
        ("op", "op", str),
        ("mode", "mode", str),
        ("T", "T", str),
        ("N", "N", str),
        ("dtype", "dtype", str),
        ("r", "retention_ratio", str),
        ("gpu us", "gpu_us", _time),
        ("spread", "spread_us", _time),
        ("warm", "gpu_us_warm", _time),
        ("floor", "floor_us", _time),
        ("target", "target_us", _time),
        ("stretch", "stretch_us", _time),
        ("eager us", "eager_us", _time),
        ("spread", "eager_spread_us", _time),
        ("reference us", "reference_us", _time),
        ("compiled us", "compiled_reference_us", _time),
        ("extra MiB", "peak_extra_bytes", lambda value: f"{value / 2**20:.1f}"),
    ]
    cells = [[title for title, _, _ in columns]]
    cells += [["-" if row[key] is None else form(row[key]) for _, key, form in columns] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells)]
    aligned = [
        [cell.ljust(w) if i < 2 else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths))] for line in cells
    ]
    return "\n".join("  ".join(line).rstrip() for line in aligned)


def checks(rows: Sequence[Row]) -> list[tuple[bool, str]]:
    """The bounds that are set for an NVIDIA H200, as far as the rows tell: whether each holds, and its numbers."""
    found = []
    timed = [row for row in rows if row["gpu_us"] is not None]
    for row in timed:
        if row["target_us"] is not None:
            stretch = ", stretch too" if row["gpu_us"] <= row["stretch_us"] else ""
            text = f"{_case(row)}: {row['gpu_us']:.1f} us, target {row['target_us']:g} us{stretch}"
            found.append((row["gpu_us"] <= row["target_us"], text))
    pruned = [row for row in timed if row["op"] == "prune"]
    default = {row["T"]: row for row in pruned if _is_default(row)}
    if 32 in default:
        eager = default[32]["eager_us"]
        found.append((eager <= 60, f"{_case(default[32])}: eager {eager:.1f} us of wall time, at most 60 us"))
    for row in pruned:
        size = row["T"] * row["N"] * row["D"] * (4 if row["dtype"] == "float32" else 2)
        share = row["peak_extra_bytes"] / size
        if share > 0.1 or row is default.get(32):
            found.append((share <= 0.1, f"{_case(row)}: extra memory {share:.1%} of the input, at most 10%"))
        base = default.get(row["T"])
        if row["dtype"] == "float32":
            ratio = row["gpu_us"] / row["floor_us"]
            found.append((ratio <= 3, f"{_case(row)}: {ratio:.2f} x its floor, at most 3 x"))
        elif base is not None and row is not base and row["N"] == base["N"]:
            ratio = row["gpu_us"] / base["gpu_us"]
            found.append((ratio <= 2, f"{_case(row)}: {ratio:.2f} x the default, at most 2 x"))
    if 128 in default and 1024 in default:
        growth = default[1024]["gpu_us"] / default[128]["gpu_us"] / 8
        found.append((growth <= 1.15, f"1024 frames cost {growth:.2f} x eight times 128 frames, at most 1.15 x"))
    return found


def write_json(path: Path, rows: Sequence[Row]) -> None:
    """One row a line, so that two commits' results can be compared by diff."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n")


def write_markdown(path: Path, rows: Sequence[Row], kernels: Sequence[Row], about: Sequence[str]) -> None:
    """The rows with their ratios, the checks, and the kernels, for people."""
    lines = ["# `python -m bench`", "", *(f"- {line}" for line in about)]
    prunes = [row for row in rows if row["op"].startswith("prune")]
    for title, part in (("Prune", prunes), ("Stages", [row for row in rows if row not in prunes])):
        if part:
            lines += ["", f"## {title}", "", *_markdown_table(part, official=part is prunes)]
    if prunes:
        lines += ["", f"Official: {CITE_OFFICIAL}; eager, wall time, hence over our eager time."]
    if outcome := checks(rows):
        lines += ["", "## Bounds", "", *(f"- {'met' if met else '**missed**'}: {text}" for met, text in outcome)]
    if kernels:
        lines += [
            "",
            "## Kernels of a call",
            "",
            "| case | kernel | stage | launches | us a launch |",
            "|---|---|---|--:|--:|",
        ]
        lines += [
            f"| {k['case']} | {k['kernel']} | {k['stage']} | {k['launches']:g} | {k['us']:.2f} |" for k in kernels
        ]
    path.write_text("\n".join(lines) + "\n")


def _markdown_table(rows: Sequence[Row], official: bool) -> list[str]:
    titles = ["op", "mode", "T x N", "dtype", "r", "GPU us", "spread", "warm", "floor", "GPU / floor"]
    titles += ["target", "stretch", "GPU / target"] if official else []
    titles += ["eager us", "reference us", "reference / GPU", "compiled us", "extra MiB"]
    titles += ["official ms", "official / eager"] if official else []
    lines = ["| " + " | ".join(titles) + " |", "|---|---|---|---|" + "--:|" * (len(titles) - 4)]
    for row in rows:
        ours = row["gpu_us"] if row["gpu_us"] is not None else row["eager_us"]
        cells = [f"`{row['op']}`", row["mode"], f"{row['T']} x {row['N']}", row["dtype"], f"{row['retention_ratio']:g}"]
        cells += [_time(row[key]) for key in ("gpu_us", "spread_us", "gpu_us_warm", "floor_us")]
        cells.append(_ratio(row["gpu_us"], row["floor_us"]))
        if official:
            cells += [_time(row["target_us"]), _time(row["stretch_us"]), _ratio(row["gpu_us"], row["target_us"])]
        cells += [_time(row["eager_us"]), _time(row["reference_us"]), _ratio(row["reference_us"], ours)]
        cells.append(_time(row["compiled_reference_us"]))
        extra = row["peak_extra_bytes"]
        cells.append("" if extra is None else f"{extra / 2**20:.1f}")
        if official:
            theirs = official_us(row)
            cells += ["" if theirs is None else f"{theirs / 1e3:.2f}", _ratio(theirs, row["eager_us"])]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _is_default(row: Row) -> bool:
    return (row["mode"], row["N"], row["dtype"], row["retention_ratio"]) == ("default", 196, "bfloat16", 0.1)


def _case(row: Row) -> str:
    return f"{row['op']} {row['mode']} {row['T']} x {row['N']} {row['dtype']} r={row['retention_ratio']:g}"


def _time(microseconds: float | None) -> str:
    if microseconds is None:
        return ""
    return (
        f"{microseconds:.0f}"
        if microseconds >= 1000
        else f"{microseconds:.1f}"
        if microseconds >= 10
        else f"{microseconds:.2f}"
    )


def _ratio(above: float | None, below: float | None) -> str:
    if above is None or not below:
        return ""
    ratio = above / below
    return f"{ratio:.0f}x" if ratio >= 100 else f"{ratio:.3g}x"
