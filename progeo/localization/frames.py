"""Localize the frames of a sequence, photos in order or a video, together."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from progeo.data.photos import Photo
from progeo.engine.log import LOGGER
from progeo.localization.exif import taken_at
from progeo.localization.localizations import Frame, Localization
from progeo.localization.options import SequenceOptions
from progeo.localization.sequence import find_track
from progeo.places.geographic import positions_m

if TYPE_CHECKING:
    from progeo.localization.place_index import PlaceIndex

_VIDEOS = (".mp4", ".mov", ".m4v", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".ts")
_NUM_CANDIDATES = 50
"""Number of matches of each frame that a track can pass through."""
_FRAMES_AT_ONCE = 32
"""Number of frames of a video in memory."""
_VIDEO_FPS = 1.0
_ROUNDING_S = 1e-6
_MISSING_S = 1.0
"""Seconds by which the length that a video gives itself may differ from that of its frames."""
_MAP_SAMPLE = 1000
"""Number of images of the index that tell how far apart its images are."""


@dataclass(frozen=True)
class Shot:
    """A frame of a sequence."""

    photo: Photo
    name: str
    seconds: float
    """Time, ascending along the sequence."""


def localize_sequence(
    index: "PlaceIndex", photos: Sequence[Path], options: SequenceOptions, *, top: int, threshold: float, **how: Any
) -> list[Localization]:
    """Localize photos, or the frames of one video, as a sequence; returns the results in its order.

    Args:
        top: number of matches of each photo.
        threshold: minimum confidence of a known position, 0 to 1.
        how: other options of `PlaceIndex.localize`.

    Raises:
        ValueError: the index is not calibrated, the photos have no times, or the video cannot be decoded.
    """
    if index.metadata.calibration is None:
        raise ValueError("`sequence` needs a calibrated index: run `progeo index calibrate` first.")
    shots: Iterator[Shot]
    if is_video(photos):
        shots, at_once = shots_of_video(photos[0], fps=options.sequence_fps or _VIDEO_FPS), _FRAMES_AT_ONCE
        how |= {"num_workers": 0, "shows_progress": False}  # they are decoded already
    else:
        shots, at_once = iter(shots_of_photos(photos, fps=options.sequence_fps)), len(photos)
    results, seconds = [], []
    while some := list(islice(shots, at_once)):
        found = index.localize([shot.photo for shot in some], top=max(top, _NUM_CANDIDATES), threshold=threshold, **how)
        results += [replace(result, query=shot.name) for shot, result in zip(some, found, strict=True)]
        seconds += [shot.seconds for shot in some]
    times = np.array(seconds)
    return smoothed(index, results, times, max_speed_mps=options.max_speed_mps, threshold=threshold, top=top)


def is_video(photos: Sequence[Path]) -> bool:
    """Return whether photos are one video."""
    return len(photos) == 1 and photos[0].suffix.lower() in _VIDEOS


def shots_of_photos(photos: Sequence[Path], *, fps: float | None) -> list[Shot]:
    """Put photos in the order of a sequence.

    Args:
        fps: frames per second of photos that are in order; None sorts them by the time in their EXIF.

    Raises:
        ValueError: photos have no time, or not all a time zone.
    """
    if fps is not None:
        return [Shot(photo, str(photo), row / fps) for row, photo in enumerate(photos)]
    times = [taken_at(photo) for photo in photos]
    if missing := [photo for photo, time in zip(photos, times, strict=True) if time is None]:
        raise ValueError(
            f"{len(missing)} of {len(photos)} photos have no time in their EXIF, such as {missing[0]}: give "
            f"`sequence_fps`, the number of photos per second in the order of their names."
        )
    known: list[datetime] = [time for time in times if time is not None]
    if len({time.tzinfo is None for time in known}) > 1:
        known = [time.replace(tzinfo=None) for time in known]  # of one drive, by the clocks of its cameras
    start = min(known)
    seconds = [(time - start).total_seconds() for time in known]
    order = sorted(range(len(photos)), key=lambda row: (seconds[row], row))
    return [Shot(photos[row], str(photos[row]), seconds[row]) for row in order]


def shots_of_video(path: Path, *, fps: float) -> Iterator[Shot]:
    """Decode the frames of a video, at most `fps` per second; logs a warning if it ends before its length.

    Raises:
        ValueError: it is no video that OpenCV can decode.
    """
    import cv2

    capture = cv2.VideoCapture(str(path.resolve()), cv2.CAP_FFMPEG)  # an absolute path is no address of a stream
    try:
        due, end = 0.0, 0.0
        rate = capture.get(cv2.CAP_PROP_FPS)
        length = capture.get(cv2.CAP_PROP_FRAME_COUNT) / rate if rate > 0 else 0.0
        while capture.grab():
            seconds = capture.get(cv2.CAP_PROP_POS_MSEC) / 1000
            end = max(end, seconds)
            if seconds + _ROUNDING_S < due:
                continue
            is_decoded, pixels = capture.retrieve()
            if is_decoded:
                yield Shot(cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB), f"{path} at {seconds:.2f} s", seconds)
            due = (math.floor((seconds + _ROUNDING_S) * fps) + 1) / fps
        if due == 0:
            raise ValueError(f"{path} is no video that can be decoded.")
        if end + _MISSING_S < length:
            LOGGER.warning("%s is %.1f s long, and only %.1f s can be decoded: it is truncated", path, length, end)
    finally:
        capture.release()


def smoothed(
    index: "PlaceIndex",
    results: Sequence[Localization],
    seconds: np.ndarray,
    *,
    max_speed_mps: float,
    threshold: float,
    top: int,
) -> list[Localization]:
    """Put the match on the most likely track first in the result of each frame.

    Its confidence becomes the probability, given all frames, that the frame was taken within the radius of that match.
    A frame that is not on the track is unknown, with its own first match.

    Args:
        index: the calibrated index that was searched.
        results: of each frame on its own, with many matches; one at least.
        seconds: time of each frame, ascending, (T,).
        threshold: minimum confidence of a known position, 0 to 1.
        top: number of matches that each result keeps.
    """
    calibration = index.metadata.calibration
    assert calibration is not None
    candidates = [result.matches[:_NUM_CANDIDATES] for result in results]
    shape = len(results), max(1, *map(len, candidates))
    rows, distances = np.full(shape, -1), np.zeros(shape)
    for frame, matches in enumerate(candidates):
        rows[frame, : len(matches)] = [match.row for match in matches]
        distances[frame, : len(matches)] = [match.distance for match in matches]
    drawn = np.random.default_rng(0).permutation(len(index.images))[:_MAP_SAMPLE]
    sample = index.images.take(np.sort(drawn))
    candidates_m, map_m = positions_m(index.catalogue.take(np.maximum(rows, 0).ravel()), sample)
    track = find_track(
        distances,
        np.where((rows >= 0)[..., None], candidates_m.reshape(*rows.shape, 2), np.nan),
        np.array([np.nan if result.confidence is None else result.confidence for result in results]),
        seconds=seconds,
        map_m=map_m[np.isfinite(map_m).all(axis=1)],
        max_speed_mps=max_speed_mps,
        radius_m=calibration.radius_m,
    )
    return [
        _on_track(result, time, candidate, confidence, threshold=threshold, top=top)
        for result, time, candidate, confidence in zip(
            results, (seconds - seconds[0]).tolist(), track.candidates.tolist(), track.confidences.tolist(), strict=True
        )
    ]


def _on_track(
    result: Localization, seconds: float, candidate: int, confidence: float, *, threshold: float, top: int
) -> Localization:
    if not result.matches:
        return replace(result, frame=Frame(seconds, None))
    first = max(candidate, 0)
    matches = (result.matches[first], *result.matches[:first], *result.matches[first + 1 :])
    return replace(
        result,
        matches=matches[:top],
        confidence=confidence,
        known=candidate >= 0 and confidence >= threshold,
        frame=Frame(seconds, result.matches[0]),
    )
