"""Parse UTM zones as written in tables: 23, 23K, 23S, 10 north, UTM zone 10N, EPSG:32723."""

import re

_ZONE = re.compile(
    r"(?:utm *)?(?:zone *)?(\d{1,2})(?:\.0*)?[ -]*([c-hj-np-x]|north(?:ern)?|south(?:ern)?)?", re.IGNORECASE
)
_NAMED = re.compile(r".*/ *utm zone (\d{1,2})([ns])", re.IGNORECASE)
"""A zone name of the EPSG registry, in which S means south, not band S."""
_CODE = re.compile(r"(?:.*epsg:[^:]*:?|.*epsg *)?(326|327|258|269)(\d\d)(?:\.0*)?", re.IGNORECASE)
_WORDS = {"n": "north", "s": "south", "326": "north", "327": "south", "258": "north", "269": "north"}
_ZONES = {"258": range(28, 39), "269": range(1, 24)}
"""UTM codes of ETRS89 and NAD83, within 2 m of WGS 84; other codes of these hundreds are not UTM."""


def parse_zone(text: str) -> tuple[int, str] | None:
    """Parse a zone from 1 to 60, or 0 for none, and its band letter or hemisphere word ("" if neither is given).

    Returns:
        None if the text is not a zone.
    """
    if found := _ZONE.fullmatch(text):
        return _zone(found[1], found[2] or "")
    return parse_code(text) if re.search("epsg|/", text, re.IGNORECASE) else None  # a bare 32723 is no zone


def parse_code(text: str) -> tuple[int, str] | None:
    """Parse an EPSG code such as 32723, or an EPSG name, into a zone and `north` or `south`.

    Returns:
        None if the text is not a UTM code.
    """
    if named := _NAMED.fullmatch(text):
        return _zone(named[1], _WORDS[named[2].lower()])
    found = _CODE.fullmatch(text)
    if not found or int(found[2]) not in _ZONES.get(found[1], range(1, 61)):
        return None
    return _zone(found[2], _WORDS[found[1]])


def _zone(number: str, letter: str) -> tuple[int, str] | None:
    return (int(number), letter) if int(number) <= 60 and (int(number) or not letter) else None
