"""Decode images in processes of their own: one that crashes or hangs its decoder fails alone, and is never stored."""

import atexit
import json
import math
import multiprocessing
import os
import queue
import signal
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from io import BytesIO
from multiprocessing.connection import Connection
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from PIL import Image

from progeo.data.decode import decode_image
from progeo.image_files import MAX_PIXELS_VARIABLE, Orientation, Resize
from progeo.json_files import converted
from progeo.models.options import Preprocessing
from progeo.models.preprocessing import preprocess_image
from progeo.remote_files import RemotePath, path_of

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

_START = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
_WEBP_QUALITY = 80
_HEADER_BYTES = 10_000


@dataclass(frozen=True)
class Decoding:
    """How a photo becomes pixels."""

    orientation: Orientation = "exif"
    preprocessing: Preprocessing | None = None
    """Preprocessing after decoding; None returns all pixels."""
    image_size: tuple[int, int] = (0, 0)
    resize: Resize = "bilinear"


@dataclass(frozen=True)
class _Answer:
    """What a process says about an image, besides its bytes."""

    shape: tuple[int, ...] = ()
    """Shape of pixels; empty for a file."""
    error: str = ""


class NoDecoder(RuntimeError):
    """No process can be started."""


class Decoders:
    """Processes that decode images, each one at a time. A call waits until one is free."""

    def __init__(self, count: int, *, max_pixels: int, timeout_s: float, on_failure: Callable[[], None]) -> None:
        """Start `count` processes.

        Args:
            max_pixels: maximum pixels of an image.
            timeout_s: seconds after which an image is given up.
            on_failure: called when a process had to be ended; the next image starts another one.

        Raises:
            NoDecoder: a process cannot be started.
        """
        self._timeout_s = timeout_s
        self._on_failure = on_failure
        context = multiprocessing.get_context(_START)
        if _START == "forkserver":
            context.set_forkserver_preload([__name__])  # imports torch once, so that a restart takes milliseconds
        self._idle: queue.SimpleQueue[_Decoder] = queue.SimpleQueue()
        for _ in range(count):
            decoder = _Decoder(context, max_pixels)
            decoder.start()
            self._idle.put(decoder)
        self._count = count

    def pixels(self, content: bytes, decoding: Decoding) -> np.ndarray:
        """Decode a photo to uint8 (H, W, 3), upright.

        Raises:
            ValueError: it cannot be decoded; the message is the reason, without a full stop.
            NoDecoder: there is no process that could.
        """
        answer, payload = self._ask("pixels", asdict(decoding), content)
        return np.frombuffer(bytearray(payload), np.uint8).reshape(answer.shape)

    def thumbnail(self, path: Path | RemotePath, side: int, orientation: Orientation) -> bytes:
        """Scale an image file down to a WebP whose longer side is at most `side` pixels, without metadata.

        Raises:
            ValueError, NoDecoder: as `pixels`.
        """
        return self._ask("thumbnail", {"side": side, "orientation": orientation}, os.fsencode(str(path)))[1]

    def close(self) -> None:
        """End all processes."""
        for _ in range(self._count):
            self._idle.get().end()

    def _ask(self, task: str, settings: Mapping[str, Any], content: bytes) -> tuple[_Answer, bytes]:
        decoder = self._idle.get()
        try:
            if not decoder.is_alive:
                decoder.start()
            start = time.monotonic()
            answer, payload = decoder.ask({"task": task, **settings}, content, self._timeout_s)
        except (OSError, EOFError, ValueError):
            decoder.end()
            self._on_failure()
            took_long = time.monotonic() - start >= self._timeout_s
            reason = f"it took more than {self._timeout_s:g} s" if took_long else "it stopped its decoder"
            raise ValueError(reason) from None
        finally:
            self._idle.put(decoder)
        if answer.error:
            raise ValueError(answer.error)
        return answer, payload


class _Decoder:
    """A process, and our end of the pipe to it. There is none before `start` and after `end`."""

    def __init__(self, context: Any, max_pixels: int) -> None:
        self._context = context
        self._max_pixels = max_pixels
        self._process: Any = None
        self._connection: Any = None
        atexit.register(self.end)  # multiprocessing would wait for it, as it ignores SIGTERM

    @property
    def is_alive(self) -> bool:
        return self._process is not None and self._process.is_alive()

    def start(self) -> None:
        """Start a process.

        Raises:
            NoDecoder: the system has no more processes or open files.
        """
        self.end()
        try:
            connection, theirs = self._context.Pipe()
            process = self._context.Process(target=_decode_until_closed, args=(theirs, self._max_pixels), daemon=True)
            process.start()
        except (OSError, EOFError) as error:  # the second from the forkserver, where it fails
            raise NoDecoder(f"no process can be started that decodes photos: {error!r}") from None
        theirs.close()
        self._process, self._connection = process, connection

    def ask(self, header: Mapping[str, Any], content: bytes, timeout_s: float) -> tuple[_Answer, bytes]:
        """Have one image decoded.

        Raises:
            OSError, EOFError, ValueError: the process died, took too long and was killed, or answers nonsense.
        """
        end = threading.Timer(timeout_s, self._process.kill)  # which ends whatever waits for the process below
        end.start()
        try:
            self._connection.send_bytes(json.dumps(header).encode())
            self._connection.send_bytes(content)
            # No pickles: what a photo may have taken over must not reach further than to its own pixels.
            answer = converted(json.loads(self._connection.recv_bytes(_HEADER_BYTES)), _Answer)
            payload = self._connection.recv_bytes()
        finally:
            end.cancel()
            end.join()
        if answer.shape and math.prod(answer.shape) != len(payload):
            raise ValueError
        return answer, payload

    def end(self) -> None:
        """End the process, if there is one."""
        if self._process is not None:
            self._connection.close()
            self._process.kill()
            self._process.join()
            self._process.close()
            self._process = None


def _decode_until_closed(connection: Connection, max_pixels: int) -> None:
    """Decode what comes through the pipe, in the process for it, until the other end is closed."""
    if hasattr(os, "setsid"):
        os.setsid()  # Ctrl-C, and what else signals all processes of a terminal, leaves it to finish its requests
    else:  # Windows
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # so does what signals all processes of a service
    if resource is not None:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a memory image on disk would hold a photo
    torch.set_num_threads(1)
    os.environ[MAX_PIXELS_VARIABLE] = str(max_pixels)
    with suppress(EOFError, OSError):
        while True:
            header, content = json.loads(connection.recv_bytes()), connection.recv_bytes()
            try:
                answer, payload = _TASKS[header.pop("task")](content, **header)
            except Exception as error:  # decoders raise many kinds of errors
                answer, payload = _Answer(error=str(error)[: _HEADER_BYTES // 10] or type(error).__name__), b""
            connection.send_bytes(json.dumps(asdict(answer)).encode())
            connection.send_bytes(payload)


def _pixels(content: bytes, **settings: Any) -> tuple[_Answer, bytes]:
    decoding = converted(settings, Decoding)
    pixels = decode_image(BytesIO(content), decoding.orientation)
    if decoding.preprocessing is not None:
        pixels = preprocess_image(pixels, decoding.preprocessing, decoding.image_size, decoding.resize)
    array = np.ascontiguousarray(pixels.permute(1, 2, 0).numpy())
    return _Answer(array.shape), array.tobytes()


def _thumbnail(content: bytes, *, side: int, orientation: Orientation) -> tuple[_Answer, bytes]:
    image = Image.fromarray(decode_image(path_of(os.fsdecode(content)), orientation).permute(1, 2, 0).numpy())
    image.thumbnail((side, side))
    stream = BytesIO()
    image.save(stream, "WEBP", quality=_WEBP_QUALITY)
    return _Answer(), stream.getvalue()


_TASKS: Mapping[str, Callable[..., tuple[_Answer, bytes]]] = MappingProxyType(
    {"pixels": _pixels, "thumbnail": _thumbnail}
)
