"""Processes that decode images: what ends them, and that they are started again."""

import multiprocessing
import os
import signal

import pytest

from progeo.remote_files import RemotePath
from progeo.service.decoding import Decoders, Decoding, NoDecoder


@pytest.fixture
def failures():
    return []


@pytest.fixture
def decoders(failures):
    decoders = Decoders(1, max_pixels=10**6, timeout_s=60, on_failure=lambda: failures.append("ended"))
    yield decoders
    decoders.close()


@pytest.mark.slow
def test_a_process_that_cannot_be_started_now_is_started_later(decoders, failures, photos, monkeypatch):
    content = photos[0].read_bytes()
    (process,) = multiprocessing.active_children()
    process.kill()
    process.join()

    def refuse(*arguments, **keywords):
        raise OSError(24, "Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr("multiprocessing.context.BaseContext.Pipe", refuse)
        for _ in range(2):
            with pytest.raises(
                NoDecoder, match=r"no process can be started that decodes photos: .*Too many open files"
            ):
                decoders.pixels(content, Decoding())
    assert decoders.pixels(content, Decoding()).shape[2] == 3
    assert failures == []


def test_a_signal_to_all_processes_of_a_service_lets_a_decoder_go_on(decoders, photos):
    (process,) = multiprocessing.active_children()
    decoders.pixels(photos[0].read_bytes(), Decoding())  # it has begun
    os.kill(process.pid, signal.SIGTERM)
    decoders.pixels(photos[0].read_bytes(), Decoding())
    assert [each.pid for each in multiprocessing.active_children()] == [process.pid]


def test_a_picture_of_an_image_behind_a_url_is_that_of_the_file(decoders, photos):
    pictures = [decoders.thumbnail(path, 32, "exif") for path in (photos[0], RemotePath(f"file://{photos[0]}"))]
    assert pictures[0] == pictures[1]
