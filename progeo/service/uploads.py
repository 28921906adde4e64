"""Read the photos and settings of a request into memory, within limits, and never to disk."""

import asyncio
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import PurePath

from fastapi import HTTPException, Request
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from progeo.printable import printable
from progeo.service.options import ServiceOptions

PHOTOS = "photos"
_MB = 1_000_000
_MAX_VALUE_BYTES = 1000
"""Maximum size of the value of a setting, and of the name of a field."""
_LONGEST_NAME = 200


@dataclass(frozen=True)
class UploadedPhoto:
    """A photo as it was sent."""

    name: str
    """Its file name, or `photo 3` without one; safe to show."""
    content: bytes


@dataclass(frozen=True)
class Upload:
    """The content of a request."""

    photos: list[UploadedPhoto]
    settings: dict[str, str]


async def read_upload(request: Request, options: ServiceOptions, settings: Collection[str]) -> Upload:
    """Read a form of photos and settings.

    Args:
        settings: names of the fields besides `photos`.

    Raises:
        HTTPException: it is no such form, larger than allowed, or takes too long.
    """
    kind, parameters = parse_options_header(request.headers.get("content-type", ""))
    boundary = parameters.get(b"boundary", b"")
    if kind != b"multipart/form-data" or not boundary:
        raise HTTPException(
            415, f"Send a form (multipart/form-data) with the files in the field {PHOTOS!r}: curl -F {PHOTOS}=@FILE."
        )
    max_bytes = options.max_upload_mb * _MB
    if int(request.headers.get("content-length", 0)) > max_bytes:
        raise _too_large(options)
    form = _Form(boundary, options, settings)
    size = 0
    try:
        async with asyncio.timeout(options.upload_s):
            async for chunk in request.stream():
                size += len(chunk)
                if size > max_bytes:
                    raise _too_large(options)
                form.write(chunk)
    except TimeoutError:
        raise HTTPException(
            408, f"The request was not received within {options.upload_s:g} s: send fewer or smaller photos."
        ) from None
    return form.finished()


def _too_large(options: ServiceOptions) -> HTTPException:
    return HTTPException(
        413, f"The request is larger than {options.max_upload_mb} MB: send fewer photos, or scale them down."
    )


@dataclass
class _Part:
    """The part of the form that is being read."""

    header: bytearray = field(default_factory=bytearray)
    value: bytearray = field(default_factory=bytearray)
    disposition: str = ""
    name: str = ""
    file_name: str | None = None
    content: bytearray = field(default_factory=bytearray)


class _Form:
    """A multipart form, parsed as its bytes come."""

    def __init__(self, boundary: bytes, options: ServiceOptions, settings: Collection[str]) -> None:
        self._options = options
        self._names = settings
        self._upload = Upload([], {})
        self._part = _Part()
        self._is_complete = False
        try:
            self._parser = MultipartParser(
                boundary,
                {
                    "on_part_begin": self._begin,
                    "on_header_field": self._add_header,
                    "on_header_value": self._add_value,
                    "on_header_end": self._end_header,
                    "on_headers_finished": self._check,
                    "on_part_data": self._add_content,
                    "on_part_end": self._end,
                    "on_end": self._complete,
                },
            )
        except FormParserError:
            raise HTTPException(400, "The boundary of the form is too long.") from None

    def write(self, chunk: bytes) -> None:
        try:
            self._parser.write(chunk)
        except FormParserError:
            raise HTTPException(400, "The form is corrupt (multipart/form-data).") from None

    def finished(self) -> Upload:
        if not self._is_complete:
            raise HTTPException(400, "The form is truncated: send it again.")
        if not self._upload.photos:
            raise HTTPException(400, f"There is no photo: send files in the field {PHOTOS!r}.")
        return self._upload

    def _begin(self) -> None:
        self._part = _Part()

    def _add_header(self, data: bytes, start: int, end: int) -> None:
        self._part.header += data[start:end]

    def _add_value(self, data: bytes, start: int, end: int) -> None:
        self._part.value += data[start:end]

    def _end_header(self) -> None:
        if self._part.header.lower() == b"content-disposition":
            self._part.disposition = self._part.value.decode("latin-1")
        self._part.header, self._part.value = bytearray(), bytearray()

    def _check(self) -> None:
        """Refuse a field before its content comes."""
        _, parameters = parse_options_header(self._part.disposition)
        found = {name: _text(parameters.get(name)) for name in (b"name", b"filename")}
        part, name = self._part, found[b"name"] or ""
        part.name, part.file_name = name, found[b"filename"]
        if name == PHOTOS:
            if len(self._upload.photos) == self._options.max_photos:
                raise HTTPException(413, f"There are more than {self._options.max_photos} photos in the request.")
            return
        if name not in self._names:
            raise HTTPException(
                400,
                f"There is no field {printable(name[:_LONGEST_NAME])!r}: files go into {PHOTOS!r}, and settings are "
                f"{', '.join(self._names)}.",
            )
        if name in self._upload.settings:
            raise HTTPException(400, f"The field {name!r} is given twice.")

    def _add_content(self, data: bytes, start: int, end: int) -> None:
        part = self._part
        part.content += data[start:end]
        if part.name != PHOTOS and len(part.content) > _MAX_VALUE_BYTES:
            raise HTTPException(400, f"The value of the field {part.name!r} is too long.")

    def _end(self) -> None:
        part = self._part
        if part.name == PHOTOS:
            number = len(self._upload.photos) + 1
            # Browsers send a bare name; other programs may send a path.
            name = PurePath((part.file_name or "").replace("\\", "/")).name[-_LONGEST_NAME:]
            self._upload.photos.append(UploadedPhoto(printable(name) or f"photo {number}", bytes(part.content)))
        else:
            self._upload.settings[part.name] = _text(bytes(part.content)) or ""

    def _complete(self) -> None:
        self._is_complete = True


def _text(value: bytes | None) -> str | None:
    return None if value is None else value.decode("utf-8", errors="replace")
