"""Values of JSON files are checked against types, and refused with file, field and value."""

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, TypedDict

import pytest
from msgspec import Meta

from progeo.files import read_json
from progeo.json_files import read_json_as


@dataclass(frozen=True)
class Settings:
    count: Annotated[int, Meta(ge=1)]
    sides: tuple[int, int] = (1, 2)
    kind: Literal["flat", "tree"] = "flat"
    rest: dict[str, Any] = field(default_factory=dict)


class Line(TypedDict):
    epoch: int


@pytest.mark.parametrize(
    ("kind", "text", "expected"),
    [
        (Settings, '{"count": 3, "sides": [4, 5]}', Settings(3, (4, 5))),
        (Line, '{"epoch": 3, "loss": 0.5}', {"epoch": 3}),
        (dict[int, str], '{"7": "corrupt"}', {7: "corrupt"}),
        (list[Line], "[]", []),
    ],
)
def test_values_become_those_of_the_type(kind, text, expected, tmp_path):
    (tmp_path / "x.json").write_text(text)
    assert read_json_as(tmp_path / "x.json", kind) == expected


@pytest.mark.parametrize(
    ("kind", "text", "words"),
    [
        (Settings, "{}", "missing the field count"),
        (Settings, "[]", r"expected object, got \[\]"),
        (Settings, '{"count": 0}', "expected int >= 1, got 0 in count"),
        (Settings, '{"count": true}', "expected int, got True in count"),
        (Settings, '{"count": 1.0}', "expected int, got 1.0 in count"),
        (Settings, '{"count": 1, "sides": [2, "3"]}', r"expected int, got '3' in sides\[1\]"),
        (Settings, '{"count": 1, "kind": "ball"}', "expected one of flat, tree, got 'ball' in kind"),
        (Settings, '{"count": 1, "more": 2}', "unknown 'more'; its fields are count, sides, kind, rest"),
        (list[Line], '[{"epoch": 1}, {}]', r"missing the field epoch in \[1\]"),
        (dict[int, str], '{"a": "b"}', "expected int"),
    ],
)
def test_other_values_are_refused_with_file_field_and_value(kind, text, words, tmp_path):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(
        ValueError, match=rf"^{tmp_path}/x.json is not as progeo writes it: {words}.*\. Make it again\.$"
    ):
        read_json_as(tmp_path / "x.json", kind, advice="Make it again.")


@pytest.mark.parametrize("text", ["[" * 100_000, r'{"a": "\ud800"}', "1" * 5000, "<html>", ""])
def test_what_is_no_text_or_too_deep_or_no_json_is_refused_by_name(text, tmp_path):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(ValueError, match=r"x\.json is not a JSON file: "):
        read_json(tmp_path / "x.json")
