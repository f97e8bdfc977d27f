"""The sampled frames in order, with the fate of each token drawn where it was."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from .clip import Clip
from .pruning import CENTER, PRUNED, SALIENT, Pruning

WIDTH, MARGIN, GAP, HEADER, LABEL = 1600, 20, 12, 96, 24  # pixels
DPI = 100
TINT = 0.3
TALLEST = 0.85  # of the width: more columns until it fits
COLORS = {SALIENT: "#ffa200", CENTER: "#2fe0ff"}
SEGMENT_COLORS = ["#3b6fb6", "#c4392f", "#3f9142", "#8e56b0", "#8a5a3c", "#d0589f", "#5f6b76"]  # none near those above


def draw(path: Path, title: str, clip: Clip, pruning: Pruning, grid: int) -> None:
    """Write the picture of a prune as a PNG of 1600 pixels' width.

    Args:
        path: where to.
        title: one line.
        clip: F frames.
        pruning: of these frames.
        grid: tokens a side of a frame.

    Raises:
        OSError: the file cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    frames, rows, columns, _ = clip.thumbnails.shape
    across, width, height, total = _layout(frames, columns / rows)
    figure = Figure(figsize=(WIDTH / DPI, total / DPI), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    _draw_header(figure, total, title, pruning)
    for number, segment in enumerate(pruning.segments):
        color = SEGMENT_COLORS[number % len(SEGMENT_COLORS)]
        for frame in segment:
            left = MARGIN + frame % across * (width + GAP)
            top = HEADER + frame // across * (height + LABEL + GAP) + LABEL
            axes = figure.add_axes((left / WIDTH, 1 - (top + height) / total, width / WIDTH, height / total))
            _draw_frame(axes, clip.thumbnails[frame], pruning.roles[frame].reshape(grid, grid), color)
            _draw_label(axes, f"S{number + 1}", f"{clip.times[frame]:.2f} s" if width > 100 else "", color)
    figure.savefig(path, format="png")


def _layout(frames: int, aspect: float) -> tuple[int, float, float, float]:
    """Panels across, width and height of one, and height of the picture, all in pixels."""
    for across in range(1, frames + 1):
        width = (WIDTH - 2 * MARGIN + GAP) / across - GAP
        height = width / aspect
        total = HEADER + math.ceil(frames / across) * (height + LABEL + GAP) - GAP + MARGIN
        if total <= TALLEST * WIDTH:
            break
    return across, width, height, total


def _draw_frame(axes, image: np.ndarray, roles: np.ndarray, color: str) -> None:
    from matplotlib.collections import PatchCollection
    from matplotlib.patches import Rectangle

    grid = len(roles)
    line = min(max(axes.get_window_extent().width / 230, 1), 4)
    pruned = np.kron(roles == PRUNED, np.ones((image.shape[0] // grid, image.shape[1] // grid), bool))[..., None]
    dimmed = 36 + 0.3 * image.mean(2, keepdims=True) + 0.22 * image
    axes.imshow(np.where(pruned, dimmed, image).astype(np.uint8), extent=(0, grid, grid, 0), aspect="auto")
    for role, role_color in COLORS.items():
        cells = [Rectangle((x + 0.08, y + 0.08), 0.84, 0.84) for y, x in np.argwhere(roles == role)]
        axes.add_collection(PatchCollection(cells, facecolor=(role_color, TINT), edgecolor=role_color, linewidth=line))
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set(color=color, linewidth=2.5)


def _draw_label(axes, segment: str, time: str, color: str) -> None:
    place = {"xycoords": "axes fraction", "textcoords": "offset pixels", "va": "bottom"}
    tag = {"boxstyle": "square,pad=0.25", "facecolor": color, "edgecolor": "none"}
    axes.annotate(segment, (0, 1), (3, 6), color="white", weight="bold", size=10, bbox=tag, **place)
    axes.annotate(time, (1, 1), (0, 4), color="#555555", size=10, ha="right", **place)


def _draw_header(figure, total: float, title: str, pruning: Pruning) -> None:
    from matplotlib.patches import Patch

    figure.text(MARGIN / WIDTH, 1 - 30 / total, title, size=17, weight="bold", va="center", parse_math=False)
    salient, centers, pruned = (int((pruning.roles == role).sum()) for role in (SALIENT, CENTER, PRUNED))
    last = len(pruning.segments)
    swatches = [Patch(facecolor=(color, TINT), edgecolor=color, linewidth=2) for color in COLORS.values()]
    swatches += [Patch(facecolor="#5a5a5a"), Patch(facecolor="none", edgecolor=SEGMENT_COLORS[0], linewidth=3)]
    labels = [
        f"salient, kept as it is: {salient:,}",
        f"merge centre, takes in the pruned tokens most like it: {centers:,}",
        f"pruned: {pruned:,}",
        f"segments S1 to S{last}" if last > 1 else "segment S1",
    ]
    figure.legend(
        swatches,
        labels,
        loc="center left",
        bbox_to_anchor=(MARGIN / WIDTH, 1 - 66 / total),
        ncols=len(labels),
        frameon=False,
        fontsize=13,
        borderpad=0,
        borderaxespad=0,
        handlelength=1.6,
        columnspacing=2.2,
    )
