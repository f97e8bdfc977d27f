"""The parameters of FastVID, checked once and then frozen."""

from __future__ import annotations

import dataclasses
import math

__all__ = ["PruneConfig", "retained_count"]

PARAMETERS_OF_STAGE = {
    "segment": ("min_segments", "segment_threshold"),
    "plan": ("retention_ratio", "context_ratio", "anchor_stride", "thin_threshold", "spread_remainder"),
    "knn_density": ("num_neighbors",),
    "select_peaks": (),
    "scatter_merge": ("merge_floor", "merge_centers"),
}


@dataclasses.dataclass(frozen=True)
class PruneConfig:
    """Parameters of :func:`fastvid_ext.prune`; the paper's symbol in parentheses.

    Attributes:
        retention_ratio: (r) share of the tokens that is kept, in (0, 1].
        min_segments: (c) a video is cut into at least this many segments, >= 1.
        segment_threshold: (tau) cut where two adjacent frames have a cosine similarity below it.
        context_ratio: (d) share of a segment's budget that goes to merged context tokens, in [0, 1].
        anchor_stride: (p) every p-th frame of a segment, from its end, is an anchor frame, >= 1.
        merge_floor: (beta) least weight that a centre keeps in its own merge, in [0, 1].
        num_neighbors: (k) neighbours in the local density, the token itself counted, >= 1.
        thin_threshold: frames at least this similar to the next one give up their budget (Qwen's dynamic
            sampling); None turns it off.
        spread_remainder: spread a budget that does not divide evenly; False drops the remainder.
        merge_centers: a centre counts among the tokens that merge into it.

    Raises:
        TypeError: a value of the wrong type.
        ValueError: a value out of range.
    """

    retention_ratio: float = 0.1
    min_segments: int = 8
    segment_threshold: float = 0.9
    context_ratio: float = 0.4
    anchor_stride: int = 4
    merge_floor: float = 0.6
    num_neighbors: int = 4
    thin_threshold: float | None = None
    spread_remainder: bool = True
    merge_centers: bool = False

    def __post_init__(self) -> None:
        for name in ("min_segments", "anchor_stride", "num_neighbors"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(f"{name}: got {value!r}, want an int")
            if value < 1:
                raise ValueError(f"{name}: got {value}, want at least 1")
        for name in ("retention_ratio", "segment_threshold", "context_ratio", "merge_floor", "thin_threshold"):
            value = getattr(self, name)
            if name == "thin_threshold" and value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise TypeError(f"{name}: got {value!r}, want a float")
            if math.isnan(value):
                raise ValueError(f"{name}: got nan, want a number")
        if not 0 < self.retention_ratio <= 1:
            raise ValueError(f"retention_ratio: got {self.retention_ratio}, want a value in (0, 1]")
        for name in ("context_ratio", "merge_floor"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise ValueError(f"{name}: got {value}, want a value in [0, 1]")
        for name in ("spread_remainder", "merge_centers"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"{name}: got {getattr(self, name)!r}, want a bool")

    @property
    def exact_count(self) -> bool:
        """Whether the number of kept tokens is known from shapes alone (then ``prune`` never syncs)."""
        return self.spread_remainder and self.thin_threshold is None

    def to_kwargs(self, op: str = "prune") -> dict[str, float | int | bool | None]:
        """The keyword arguments of ``torch.ops.fastvid.OP``.

        Args:
            op: "prune", "prune_padded", or a stage: "segment", "plan", "knn_density", "select_peaks", "scatter_merge".

        Raises:
            ValueError: an op that is none of these.
        """
        if op in ("prune", "prune_padded"):
            return dict(vars(self))
        if op not in PARAMETERS_OF_STAGE:
            raise ValueError(f"op: got {op!r}, want one of prune, prune_padded, {', '.join(PARAMETERS_OF_STAGE)}")
        parameters = {name: getattr(self, name) for name in PARAMETERS_OF_STAGE[op]}
        if op == "segment":
            parameters["threshold"] = parameters.pop("segment_threshold")
        return parameters

    @classmethod
    def llava_onevision(cls, **overrides) -> PruneConfig:
        """As the official LLaVA-OneVision code prunes."""
        return cls(**{"spread_remainder": False, "merge_centers": True, **overrides})

    @classmethod
    def llava_video(cls, **overrides) -> PruneConfig:
        """As the official LLaVA-Video code prunes: the defaults."""
        return cls(**overrides)

    @classmethod
    def qwen2_vl(cls, **overrides) -> PruneConfig:
        """As the official Qwen2-VL code prunes; its published run used ``retention_ratio=0.27``."""
        return cls(**{"segment_threshold": 0.84, "thin_threshold": 0.95, **overrides})

    @classmethod
    def qwen2_5_vl(cls, **overrides) -> PruneConfig:
        """As the official Qwen2.5-VL code prunes; its published run used ``retention_ratio=0.27``."""
        return cls.qwen2_vl(**overrides)


def retained_count(num_frames: int, tokens_per_frame: int, config: PruneConfig | None = None) -> int:
    """Number of tokens that a prune keeps, from shapes alone.

    Exact where ``config.exact_count`` holds; otherwise the most that may be kept, which is also the number of
    rows of ``torch.ops.fastvid.prune_padded``. Several videos packed along the frames count together.

    Args:
        num_frames: (T) frames of all videos, >= 0.
        tokens_per_frame: (N) tokens a frame, >= 1.
        config: the parameters; the defaults when None.

    Raises:
        ValueError: a count out of range.
    """
    if num_frames < 0:
        raise ValueError(f"num_frames: got {num_frames}, want at least 0")
    if tokens_per_frame < 1:
        raise ValueError(f"tokens_per_frame: got {tokens_per_frame}, want at least 1")
    ratio = (config or PruneConfig()).retention_ratio
    return num_frames * max(1, int(tokens_per_frame * ratio))
