"""Damage files at random, the same way for the same seed: bytes, numbers in text, values in JSON and safetensors."""

import json
import random
import re
from collections.abc import Callable, Iterator

_NUMBER = re.compile(rb"-?\d+(?:\.\d+)?")
_NUMBERS = (b"0", b"-1", b"1e308", b"-1e300", b"nan", b"inf", b"1" + b"0" * 400, b"9223372036854775808", b"", b"null")
_VALUES = (
    *(None, True, False, 0, -1, 3, 1e308, -1e300, 1e-320, float("nan"), float("inf"), 10**400, 2**31, 2**63, 2**64),
    *("", "x", "../../x", "/etc/passwd", "{}", "{0.real}", "%s%n", "\0", "\ud800", "a" * 5000, "<script>"),
    *([], {}, [None], [[]], [0, -1], [1e308] * 3, {"": None}, {"x": {"x": []}}),
)
_HTML = b"<!DOCTYPE html><html><head><title>404</title></head><body>Not found</body></html>\n"


def mutations(content: bytes, seed: int, count: int) -> Iterator[bytes]:
    """Yield `count` damaged versions of a file's content."""
    draw = random.Random(seed)
    kinds: list[Callable[[random.Random, bytes], bytes]] = [_flip, _cut, _extend, _zero, _swap, _splice, _number]
    if _json_of(content) is not None:
        kinds += [_json_value] * len(kinds)
    elif _header_of(content) is not None:
        kinds += [_header_value] * len(kinds)
    for _ in range(count):
        if draw.random() < 0.02:
            yield draw.choice((b"", _HTML, b"\0", b"[" * 100_000, b"\xff" * 64, b"null", b"[]", b"{}"))
            continue
        damaged = content
        for _ in range(draw.choice((1, 1, 1, 2, 3))):
            damaged = draw.choice(kinds)(draw, damaged)
        yield damaged


def _range(draw: random.Random, content: bytes) -> tuple[int, int]:
    """Draw a range of bytes, short or long, more often near the beginning or the end, where the structure is."""
    size = len(content)
    place = draw.choice((draw.random(), draw.random() ** 4, 1 - draw.random() ** 4))
    start = min(int(place * size), max(0, size - 1))
    return start, min(size, start + int(2 ** draw.uniform(0, max(1, size).bit_length())))


def _flip(draw: random.Random, content: bytes) -> bytes:
    """Change a bit, or set a byte, at one to eight places."""
    damaged = bytearray(content)
    for _ in range(draw.choice((1, 1, 2, 8)) if content else 0):
        place = _range(draw, content)[0]
        damaged[place] = draw.choice((damaged[place] ^ 1 << draw.randrange(8), 0, 0xFF, 0x7F, draw.randrange(256)))
    return bytes(damaged)


def _cut(draw: random.Random, content: bytes) -> bytes:
    start, stop = _range(draw, content)
    return content[:start] + (content[stop:] if draw.random() < 0.5 else b"")


def _extend(draw: random.Random, content: bytes) -> bytes:
    start, stop = _range(draw, content)
    return draw.choice((content + draw.randbytes(draw.randrange(1, 64)), content[:stop] + content[start:]))


def _zero(draw: random.Random, content: bytes) -> bytes:
    start, stop = _range(draw, content)
    return content[:start] + draw.choice((b"\0", b"\xff")) * (stop - start) + content[stop:]


def _swap(draw: random.Random, content: bytes) -> bytes:
    """Exchange two neighboring blocks."""
    start, stop = _range(draw, content)
    end = min(len(content), 2 * stop - start)
    return content[:start] + content[stop:end] + content[start:stop] + content[end:]


def _splice(draw: random.Random, content: bytes) -> bytes:
    """Write a block over another place."""
    start, stop = _range(draw, content)
    to = _range(draw, content)[0]
    return content[:to] + content[start:stop] + content[to + stop - start :]


def _number(draw: random.Random, content: bytes) -> bytes:
    """Replace a number in a text, or an aligned integer in a binary file, by a hostile one."""
    found = list(_NUMBER.finditer(content[:20_000])) if content.isascii() else []
    if found:
        match = draw.choice(found)
        return content[: match.start()] + draw.choice(_NUMBERS) + content[match.end() :]
    size = draw.choice((2, 4, 8))
    start = _range(draw, content)[0] // size * size
    value = draw.choice((0, 1, -1, 2**31 - 1, -(2**31), 2**62, len(content), len(content) + 8, draw.randrange(2**16)))
    return content[:start] + (value % 2 ** (8 * size)).to_bytes(size, "little") + content[start + size :]


def _json_value(draw: random.Random, content: bytes) -> bytes:
    values = _json_of(content)
    return content if values is None else _changed(draw, values)


def _header_value(draw: random.Random, content: bytes) -> bytes:
    """Change a value in the header of a safetensors file, or in JSON inside its metadata."""
    header = _header_of(content)
    if header is None:
        return content
    size = int.from_bytes(content[:8], "little")
    nested = {
        key: inner
        for key, text in (header.get("__metadata__") or {}).items()
        if isinstance(text, str) and (inner := _json_of(text.encode(errors="replace"))) is not None
    }
    if nested and draw.random() < 0.5:
        key = draw.choice(sorted(nested))
        header["__metadata__"][key] = _changed(draw, nested[key]).decode(errors="replace")
        changed = json.dumps(header).encode()
    else:
        changed = _changed(draw, header)
    return len(changed).to_bytes(8, "little") + changed + content[8 + size :]


def _changed(draw: random.Random, values: dict | list) -> bytes:
    """Replace, remove, add or rename one value of a JSON document, at any depth, and return its text."""
    places = list(_places(values))
    holder, key = draw.choice(places) if places else (values, None)
    action = draw.random()
    if key is None or action < 0.08:
        if isinstance(holder, dict):
            holder[draw.choice(("extra", "", "__class__", "0"))] = draw.choice(_VALUES)
        else:
            holder.append(draw.choice(_VALUES))
    elif action < 0.18:
        del holder[key]
    elif action < 0.25:
        other, its_key = draw.choice(places)
        holder[key] = json.loads(json.dumps(other.get(its_key) if isinstance(other, dict) else None))
    elif action < 0.3:
        deep: object = holder[key]
        for _ in range(draw.choice((1, 50, 900))):
            deep = [deep]
        holder[key] = deep
    else:
        holder[key] = draw.choice(_VALUES)
    try:
        return json.dumps(values).encode()
    except RecursionError:
        return b"[" * 5000


def _places(values: dict | list) -> Iterator[tuple[dict | list, str | int]]:
    """Yield every value of a document as the dict or list that holds it and its key."""
    waiting: list[dict | list] = [values]
    while waiting:
        holder = waiting.pop()
        for key in list(holder) if isinstance(holder, dict) else range(len(holder)):
            yield holder, key  # type: ignore[misc]
            value = holder[key]  # type: ignore[index]
            if isinstance(value, dict | list):
                waiting.append(value)


def _json_of(content: bytes) -> dict | list | None:
    try:
        values = json.loads(content)
    except (ValueError, RecursionError):
        return None
    return values if isinstance(values, dict | list) else None


def _header_of(content: bytes) -> dict | None:
    """Parse the header of a safetensors file; None for other files."""
    size = int.from_bytes(content[:8], "little")
    header = _json_of(content[8 : 8 + size]) if 8 < size < len(content) else None
    return header if isinstance(header, dict) and isinstance(header.get("__metadata__", {}), dict | None) else None
