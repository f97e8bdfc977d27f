"""The two pictures of a run: time against T, and the share of each stage. Needs matplotlib, no torch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt

from .report import CITE_OFFICIAL, MERGE, OFFICIAL_US, PEAKS, SEGMENT

__all__ = ["draw"]

Row = dict[str, Any]
INK, GRID = "#24292f", "#d8dee4"
OURS, EAGER, REFERENCE, OFFICIAL, FLOOR = "#0969da", "#7cb7f5", "#bf8700", "#cf222e", "#6e7781"
STAGE_COLORS = {SEGMENT: "#3a96f0", PEAKS: "#0a3069", MERGE: "#2da44e", "other": "#afb8c1"}
STYLE = {
    "font.size": 11,
    "text.color": INK,
    "axes.edgecolor": GRID,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": INK,
    "ytick.color": INK,
    "figure.facecolor": "white",
    "savefig.dpi": 160,
}


def draw(results: Path) -> int:
    """Draws beside `results` whatever it has the numbers for: NAME_time.png and NAME_stages.png."""
    rows = json.loads(results.read_text())
    kernels_file = results.with_name(f"{results.stem}_kernels.json")
    kernels = json.loads(kernels_file.read_text()) if kernels_file.exists() else []
    with plt.rc_context(STYLE):
        if any(row["op"] == "prune" for row in rows):
            _draw_time(rows, results.with_name(f"{results.stem}_time.png"))
        if kernels:
            _draw_stages(rows, kernels, results.with_name(f"{results.stem}_stages.png"))
    return 0


def _draw_time(rows: Sequence[Row], path: Path) -> None:
    first = next(row for row in rows if row["op"] == "prune")
    same = {key: first[key] for key in ("op", "mode", "N", "D", "dtype", "retention_ratio")}
    sweep = sorted((row for row in rows if same.items() <= row.items()), key=lambda row: row["T"])
    on_gpu = first["gpu_us"] is not None
    figure, axes = plt.subplots(figsize=(8.2, 4.9), layout="constrained")

    def line(points: dict[int, float | None], label: str, at: int, offset: tuple[int, int], va: str, **style) -> None:
        """A line in ms, with its label in its own colour, `offset` points away from the point number `at`."""
        known = [(frames, time / 1e3) for frames, time in points.items() if time is not None]
        if known:
            axes.plot(*zip(*known), **style)
            text = {"textcoords": "offset points", "va": va, "fontsize": 10.5, "annotation_clip": False}
            axes.annotate(label, known[at], offset, color=style["color"], **text)

    def field(key: str) -> dict[int, float | None]:
        return {row["T"]: row[key] for row in sweep}

    ours = {"color": OURS, "marker": "o", "ms": 6, "lw": 2.4}
    line(field("reference_us"), "PyTorch reference,\neager", -1, (9, -8), "bottom", color=REFERENCE, marker="s", ms=5)
    if on_gpu:
        official = {t: us for (t, n, r), us in sorted(OFFICIAL_US.items()) if n == same["N"] and r == 0.1}
        line(official, "official code,\neager", -1, (9, -4), "top", color=OFFICIAL, marker="D", ms=5, ls=":")
        line(field("eager_us"), "eager call", 0, (0, 7), "bottom", color=EAGER, marker="o", ms=4, lw=1.4)
        line(field("gpu_us"), "fastvid_ext,\nGPU time", -1, (9, 6), "bottom", **ours)
    else:
        line(field("eager_us"), "fastvid_ext", -1, (9, -12), "top", **ours)
    floor = "floor: bytes in\nand out at copy\nbandwidth"
    line(field("floor_us"), floor, -1, (9, 3), "top", color=FLOOR, ls="--", lw=1.4)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks([row["T"] for row in sweep], [str(row["T"]) for row in sweep])
    axes.set_xlabel(f"frames of {same['N']} tokens")
    axes.set_ylabel("time of one prune")
    axes.yaxis.set_major_formatter(lambda ms, _: f"{ms:g} ms" if ms >= 1 else f"{ms * 1e3:g} µs")
    axes.grid(True, color=GRID, lw=0.7)
    axes.minorticks_off()
    about = f"One prune, {same['dtype']}, D = {same['D']}, retention ratio {same['retention_ratio']:g}"
    axes.set_title(about + (", inputs not in L2" if on_gpu else ", on a CPU"), loc="left")
    if on_gpu:
        figure.text(0.995, -0.01, f"red: {CITE_OFFICIAL}", ha="right", va="top", fontsize=8.5, color=FLOOR)
    figure.savefig(path, bbox_inches="tight", pad_inches=0.12)
    plt.close(figure)
    print(f"drew {path}")


def _draw_stages(rows: Sequence[Row], kernels: Sequence[Row], path: Path) -> None:
    names = list(dict.fromkeys(kernel["case"] for kernel in kernels))
    per_call = {name: dict.fromkeys(STAGE_COLORS, 0.0) for name in names}
    for kernel in kernels:
        per_call[kernel["case"]][kernel["stage"]] += kernel["us"] * kernel["launches"]
    replayed = {f"{row['mode']} {row['T']} x {row['N']}": row["gpu_us"] for row in reversed(rows) if row["target_us"]}
    stages = [stage for stage in STAGE_COLORS if any(times[stage] for times in per_call.values())]
    figure, axes = plt.subplots(figsize=(8.2, 0.46 * len(names) + 1.5), layout="constrained")
    for place, name in enumerate(names):
        total, left = sum(per_call[name].values()), 0.0
        for stage in stages:
            share = 100 * per_call[name][stage] / total
            axes.barh(place, share, left=left, height=0.68, color=STAGE_COLORS[stage], edgecolor="white")
            if share >= 7:
                axes.text(
                    left + share / 2,
                    place,
                    _microseconds(per_call[name][stage]),
                    ha="center",
                    va="center",
                    color="white",
                )
            left += share
        axes.text(
            101, place, f"{_microseconds(replayed[name])} µs" if replayed.get(name) else "", va="center", fontsize=10.5
        )
    axes.set_yticks(range(len(names)), names)
    axes.tick_params(axis="y", length=0)
    axes.invert_yaxis()
    axes.set_xlim(0, 100)
    axes.xaxis.set_major_formatter(lambda share, _: f"{share:g}%")
    axes.spines["left"].set_visible(False)
    axes.set_title("Kernel time of a prune by stage, in µs; right: one call in a graph", loc="left", pad=28)
    handles = [plt.Rectangle((0, 0), 1, 1, color=STAGE_COLORS[stage]) for stage in stages]
    axes.legend(
        handles, stages, loc="lower left", bbox_to_anchor=(-0.01, 0.99), ncols=len(stages), frameon=False,
        handlelength=1, handleheight=1, columnspacing=1.6,
    )  # fmt: skip
    figure.savefig(path, bbox_inches="tight", pad_inches=0.12)
    plt.close(figure)
    print(f"drew {path}")


def _microseconds(value: float) -> str:
    return f"{value:.1f}" if value < 100 else f"{value:.0f}"
