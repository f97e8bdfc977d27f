"""Tables and files of results. No torch here: what was measured elsewhere can be drawn and read anywhere."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..report import write_json as write

__all__ = ["findings", "key", "line", "present", "read", "table", "write"]

Row = dict[str, Any]
PAPER_SPEEDUP = 7.1  # LLaVA-OneVision-7B, 32 frames, r = 0.1


def key(row: Row) -> tuple:
    """What makes two rows the same measurement."""
    return row["model"], row["batch"], row["path"], row["retention_ratio"]


def read(path: Path | None) -> list[Row]:
    return json.loads(path.read_text()) if path is not None and path.exists() else []


def line(row: Row) -> str:
    """One row as it is measured."""
    times = "  ".join(
        f"{name} {row[f'{name}_ms']:.2f}"
        for name in ("vision", "prune", "prefill", "ttft", "decode")
        if row[f"{name}_ms"] is not None
    )
    ratio = "" if row["retention_ratio"] is None else f" r={row['retention_ratio']:g}"
    return f"{row['model']} batch {row['batch']} {row['path']}{ratio}: {times} ms, {row['tflops']:.2f} TFLOPs"


def _baseline(rows: Sequence[Row], row: Row) -> Row | None:
    return next((r for r in rows if key(r) == (row["model"], row["batch"], "none", None)), None)


def _prefill(row: Row) -> float:
    """Pruning included."""
    return row["prefill_ms"] + (row["prune_ms"] or 0)


def table(rows: Sequence[Row]) -> list[str]:
    """All rows as a table in Markdown."""
    titles = [
        "model", "batch", "path", "r", "tokens a video", "TFLOPs", "vision ms", "prune ms", "prefill ms", "TTFT ms",
        "decode ms", "prefill speed-up", "TTFT speed-up", "peak GiB", "KV MiB",
    ]  # fmt: skip
    lines = ["| " + " | ".join(titles) + " |", "|---|--:|---|" + "--:|" * (len(titles) - 3)]
    for row in rows:
        base = _baseline(rows, row)
        pruned = row["path"] != "none"
        cells = [
            row["model"],
            str(row["batch"]),
            row["path"],
            "" if row["retention_ratio"] is None else f"{row['retention_ratio']:g}",
            str(row["tokens_after"] if pruned else row["tokens_before"]),
            f"{row['tflops']:.2f}",
            *("" if row[f"{name}_ms"] is None else f"{row[f'{name}_ms']:.2f}"
              for name in ("vision", "prune", "prefill", "ttft", "decode")),
            f"{_prefill(base) / _prefill(row):.2f}x" if pruned and base else "",
            f"{base['ttft_ms'] / row['ttft_ms']:.2f}x" if pruned and base else "",
            "" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 2**30:.2f}",
            f"{row['kv_bytes'] / 2**20:.1f}",
        ]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def findings(rows: Sequence[Row]) -> list[str]:
    """What the rows say about the bounds that are set for them."""
    found = []
    for row in rows:
        base = _baseline(rows, row)
        if row["path"] != "kernels" or base is None or row["peak_bytes"] is None:  # the bounds are a GPU's
            continue
        name = f"{row['model']} batch {row['batch']} r={row['retention_ratio']:g}"
        if row["model"] == "llava_onevision" and row["retention_ratio"] == 0.1:
            ratio = _prefill(base) / _prefill(row)
            met = "met   " if ratio >= PAPER_SPEEDUP else "MISSED"
            found.append(f"{met} {name}: prefill {ratio:.2f}x faster, pruning included, at least {PAPER_SPEEDUP}x")
        share = row["prune_ms"] / _prefill(row)
        found.append(f"{'met   ' if share < 0.01 else 'MISSED'} {name}: pruning {share:.2%} of the prefill, under 1%")
        more = row["peak_bytes"] - base["peak_bytes"]
        met = "met   " if more <= 0 else "MISSED"
        found.append(f"{met} {name}: peak memory {more / 2**20:+.1f} MiB against the unpruned, at most 0")
    return found


def present(path: Path) -> int:
    """The tables, and the picture where matplotlib is there, beside the results."""
    rows = read(path)
    about = sorted({(r["device"], r["torch"], r["transformers"], str(r["git"])) for r in rows})
    lines = ["# `python -m bench.models`", ""]
    lines += [f"- {device}, torch {torch}, transformers {version}, git {git}" for device, torch, version, git in about]
    lines += ["- random weights; what each column holds stands in the docstring of `bench/models/__init__.py`", ""]
    lines += table(rows)
    if outcome := findings(rows):
        lines += ["", "## Bounds", "", *(f"- {text}" for text in outcome)]
    path.with_suffix(".md").write_text("\n".join(lines) + "\n")
    print(f"wrote {path} and {path.with_suffix('.md')}")
    if importlib.util.find_spec("matplotlib") is None:
        print(f"no matplotlib here: python -m bench.models --draw {path} draws the picture elsewhere")
        return 0
    from .draw import draw

    draw(rows, path.with_suffix(".png"))
    return 0
