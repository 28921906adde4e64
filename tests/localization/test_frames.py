"""Frames of sequences: their order and times, from EXIF, names and a video."""

import cv2
import numpy as np
import pytest
from PIL import Image
from PIL.ExifTags import IFD, Base

from progeo.localization.frames import shots_of_photos, shots_of_video


def photo(path, time="", zone=""):
    exif = Image.Exif()
    values = {Base.DateTimeOriginal: time, Base.OffsetTimeOriginal: zone}
    exif.get_ifd(IFD.Exif).update({tag: value for tag, value in values.items() if value})
    Image.new("RGB", (8, 8)).save(path, exif=exif)
    return path


def test_photos_are_sorted_by_the_time_in_their_exif(tmp_path):
    photos = [
        photo(tmp_path / "a.jpg", "2024:05:01 12:00:10", "+02:00"),
        photo(tmp_path / "b.jpg", "2024:05:01 10:00:07", "+00:00"),
        photo(tmp_path / "c.jpg", "2024:05:01 09:00:12", "-01:00"),
    ]
    shots = shots_of_photos(photos, fps=None)
    assert [(shot.name, shot.seconds) for shot in shots] == [
        (str(photos[1]), 0),
        (str(photos[0]), 3),
        (str(photos[2]), 5),
    ]


def test_clocks_without_a_zone_are_compared_as_they_are(tmp_path):
    photos = [
        photo(tmp_path / "a.jpg", "2024:05:01 12:00:10", "+02:00"),
        photo(tmp_path / "b.jpg", "2024:05:01 12:00:07"),
    ]
    assert [shot.seconds for shot in shots_of_photos(photos, fps=None)] == [0, 3]


def test_photos_in_order_need_no_times(tmp_path):
    photos = [tmp_path / "b.jpg", tmp_path / "a.jpg"]
    assert [(shot.photo, shot.seconds) for shot in shots_of_photos(photos, fps=4.0)] == [
        (photos[0], 0),
        (photos[1], 0.25),
    ]


def test_photos_without_times_are_refused(tmp_path):
    photos = [photo(tmp_path / "a.jpg", "2024:05:01 12:00:10"), photo(tmp_path / "b.jpg")]
    with pytest.raises(ValueError, match=r"1 of 2 photos have no time in their EXIF, such as .*b.jpg: give"):
        shots_of_photos(photos, fps=None)


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    """Three seconds of 10 frames each; the red of a frame is 8 times its number."""
    path = tmp_path_factory.mktemp("video") / "drive.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 10, (64, 48))
    for number in range(30):
        writer.write(np.full((48, 64, 3), (0, 0, 8 * number), np.uint8))
    writer.release()
    return path


@pytest.mark.parametrize(
    ("fps", "expected"), [(1, [0, 10, 20]), (4, [0, 3, 5, 8, 10, 13, 15, 18, 20, 23, 25, 28]), (99, range(30))]
)
def test_frames_of_a_video_are_taken_at_a_rate(video, fps, expected):
    shots = list(shots_of_video(video, fps=fps))
    np.testing.assert_allclose([shot.seconds for shot in shots], np.array(expected) / 10, atol=1e-6)
    assert [round(shot.photo[..., 0].mean() / 8) for shot in shots] == list(expected)
    assert (shots[0].photo.shape, shots[0].photo.dtype) == ((48, 64, 3), np.uint8)
    assert shots[-1].name == f"{video} at {expected[-1] / 10:.2f} s"


def test_a_truncated_video_is_reported(video, tmp_path, caplog):
    list(shots_of_video(video, fps=1))
    assert "truncated" not in caplog.text
    content = video.read_bytes()
    (tmp_path / "a.avi").write_bytes(content[: len(content) // 2])
    assert len(list(shots_of_video(tmp_path / "a.avi", fps=10))) < 20
    assert f"{tmp_path}/a.avi is 3.0 s long, and only " in caplog.text
    assert caplog.text.rstrip().endswith("s can be decoded: it is truncated")


def test_a_file_that_is_no_video_is_refused(tmp_path):
    (tmp_path / "a.mp4").write_text("text")
    with pytest.raises(ValueError, match=r"a.mp4 is no video that can be decoded"):
        list(shots_of_video(tmp_path / "a.mp4", fps=1))
