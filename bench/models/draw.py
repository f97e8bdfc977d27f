"""The picture of a run: where the time to the first token goes. Needs matplotlib, no torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..draw import INK, STYLE, plt

__all__ = ["draw"]

NAMES = {
    "llava_onevision": "LLaVA-OneVision-7B",
    "llava_video": "LLaVA-Video-7B",
    "qwen2_vl": "Qwen2-VL-7B",
    "qwen2_5_vl": "Qwen2.5-VL-7B",
}
STAGES = {
    "vision_ms": ("vision tower", "#afb8c1"),
    "prune_ms": ("prune", "#cf222e"),
    "prefill_ms": ("prefill", "#3a96f0"),
}


def draw(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Stacked bars, one panel a batch size: each model unpruned, and pruned by either path."""
    batches = sorted({row["batch"] for row in rows})
    panels = {batch: _bars([row for row in rows if row["batch"] == batch]) for batch in batches}
    most = max(map(len, panels.values()))
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(
            1, len(batches), figsize=(2 + 5.2 * len(batches), 1.3 + 0.3 * most), squeeze=False, layout="constrained"
        )
        for axis, (batch, bars) in zip(axes[0], panels.items()):
            _panel(axis, bars)
            axis.set_title(f"{batch} video{'s' if batch > 1 else ''} at a time", loc="left")
        handles = [plt.Rectangle((0, 0), 1, 1, color=color) for _, color in STAGES.values()]
        figure.legend(handles, [name for name, _ in STAGES.values()], loc="outside upper right", ncols=3, frameon=False)
        figure.savefig(path, bbox_inches="tight", pad_inches=0.12)
        plt.close(figure)
    print(f"drew {path}")


def _bars(rows: Sequence[dict[str, Any]]) -> list[tuple[str, dict[str, Any] | None]]:
    """(label, row) from the top; None where a model begins."""
    bars: list[tuple[str, dict[str, Any] | None]] = []
    for model in dict.fromkeys(row["model"] for row in rows):
        bars.append((NAMES[model], None))
        own = [row for row in rows if row["model"] == model]
        for row in sorted(own, key=lambda row: (row["path"] != "none", row["retention_ratio"] or 0, row["path"])):
            bars.append(
                ("unpruned" if row["path"] == "none" else f"{row['path']}, r = {row['retention_ratio']:g}", row)
            )
    return bars


def _panel(axis: Any, bars: Sequence[tuple[str, dict[str, Any] | None]]) -> None:
    for place, (_, row) in enumerate(bars):
        if row is None:
            continue
        left = 0.0
        for stage, (_, color) in STAGES.items():
            axis.barh(place, row[stage] or 0, left=left, height=0.74, color=color)
            left += row[stage] or 0
        precision = ".4g" if left < 1e4 else ".0f"
        axis.text(left, place, f" {left:{precision}} ms", va="center", fontsize=9, color=INK)
    axis.set_yticks(range(len(bars)), [label for label, _ in bars])
    for label, (_, row) in zip(axis.get_yticklabels(), bars):
        label.set_fontweight("bold" if row is None else "normal")
    axis.tick_params(axis="y", length=0)
    axis.invert_yaxis()
    axis.margins(x=0.14)
    axis.set_xlabel("ms to the first token")
