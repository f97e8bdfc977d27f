"""The figures of a prune as a table."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .pruning import CENTER, PRUNED, SALIENT, Pruning

if TYPE_CHECKING:
    from rich.table import Table


def prefill_tflops(
    tokens: int, *, layers: int = 28, hidden: int = 3584, mlp: int = 18944, heads: int = 28, kv_heads: int = 4
) -> float:
    """Prefill of a language model, by default Qwen2-7B, over n tokens, in TFLOPs, as the FastVID paper counts it.

    ``layers`` of 2 n d^2 (1 + g/h) + 2 n^2 d + 3 n d m: projections with g of h key/value heads, attention, and a gated
    MLP of width m.
    """
    n, d = tokens, hidden
    return layers * (2 * n * d * d * (1 + kv_heads / heads) + 2 * n * n * d + 3 * n * d * mlp) / 1e12


def headline(name: str, pruning: Pruning) -> str:
    """The result in one line."""
    before, after = pruning.roles.size, int((pruning.roles != PRUNED).sum())
    return (
        f"{name}: {before:,} → {after:,} tokens ({after / before:.1%}), "
        f"Qwen2-7B prefill {prefill_tflops(before):.2f} → {prefill_tflops(after):.2f} TFLOPs"
    )


def build_tables(
    name: str, times: np.ndarray, pruning: Pruning, device: str, stages: list[tuple[str, float, str]]
) -> tuple[Table, Table]:
    """The ``rich`` tables: segments, and costs.

    Args:
        name: of the clip.
        times: (F,) seconds of the sampled frames.
        pruning: of these frames.
        device: what computed.
        stages: (name, seconds, remark) of what was timed.
    """
    from rich.table import Table
    from rich.text import Text

    count = pruning.roles.shape[1]
    title = Text(f"{name}: {len(times)} frames of {count} tokens")  # Text: no markup in a file's name
    segments = Table(title=title, title_justify="left", show_footer=True)
    kept = pruning.roles != PRUNED
    columns = [
        ("segment", "all"),
        ("frames", f"0-{len(times) - 1}"),
        ("seconds", f"{times[0]:.2f}-{times[-1]:.2f}"),
        ("salient", f"{(pruning.roles == SALIENT).sum():,}"),
        ("merged", f"{(pruning.roles == CENTER).sum():,}"),
        ("before", f"{kept.size:,}"),
        ("after", f"{kept.sum():,}"),
        ("kept", f"{kept.mean():.1%}"),
    ]
    for header, footer in columns:
        segments.add_column(header, footer, justify="right")
    for number, frames in enumerate(pruning.segments, 1):
        roles = pruning.roles[frames.start : frames.stop]
        first, last = frames[0], frames[-1]
        segments.add_row(
            f"S{number}",
            f"{first}-{last}" if last > first else f"{first}",
            f"{times[first]:.2f}-{times[last]:.2f}" if last > first else f"{times[first]:.2f}",
            f"{(roles == SALIENT).sum():,}",
            f"{(roles == CENTER).sum():,}",
            f"{roles.size:,}",
            f"{(roles != PRUNED).sum():,}",
            f"{(roles != PRUNED).mean():.1%}",
        )

    costs = Table(show_header=False)
    before, after = prefill_tflops(kept.size), prefill_tflops(int(kept.sum()))
    costs.add_row("LLM prefill (Qwen2-7B)", f"{before:.2f} → {after:.2f} TFLOPs", f"{after / before:.1%}")
    costs.add_row("device", device, "")
    for stage, seconds, remark in stages:
        costs.add_row(stage, f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1e3:.3g} ms", remark)
    return segments, costs
