import base64
import hashlib
import re

import pytest

from progeo.pages.gallery import Gallery, Photos, Row
from progeo.pages.page import shortened, shown_path, write_page

TEMPLATE = """
{% extends "base.html" %}
{% from "parts.html" import facts, gallery_section %}
{% block main %}
{{ facts(pairs) }}
{% if gallery is not none %}{{ gallery_section(gallery) }}{% endif %}
{% endblock %}
"""


@pytest.fixture(autouse=True)
def template(use_template):
    """A template that shows a title, facts and, if there is one, a gallery."""
    use_template("test.html", TEMPLATE)


def written(folder, *, title="title", pairs=None, **values):
    write_page(folder / "page.html", "test.html", title=title, pairs=pairs or {}, **values)
    return (folder / "page.html").read_text(encoding="utf-8")


def digest(text):
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def test_the_policy_allows_the_script_and_the_style_of_the_page_and_no_host(tmp_path):
    html = written(tmp_path, gallery=Gallery(Photos(), []))
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', html)[1].replace("&#39;", "'")
    (style,), (script,) = (
        re.findall(r"<style>(.*?)</style>", html, re.S),
        re.findall(r"<script>(.*?)</script>", html, re.S),
    )
    assert policy == (
        f"default-src 'none'; style-src {digest(style)}; script-src {digest(script)}; img-src data:; base-uri 'none'; "
        f"form-action 'none'"
    )


def test_texts_are_escaped_and_cannot_end_the_data_of_a_script(tmp_path):
    evil = "</script><script>alert(1)</script>"
    photos = Photos()
    rows = [Row(0, photos.add(evil, None), note=evil)]
    html = written(tmp_path, title=evil, pairs={evil: evil}, gallery=Gallery(photos, rows))
    assert "<script>alert" not in html
    assert html.count("<script") == 2


def test_characters_that_turn_the_order_of_others_are_shown_as_escapes(tmp_path):
    assert r"evil\u202egpj.exe" in written(tmp_path, title="evil\u202egpj.exe")


def test_absolute_paths_are_shortened_unless_they_are_wanted(tmp_path):
    pairs = {"folder": "/home/me/city/test", "encoder": "runs/city"}
    hidden, shown = written(tmp_path, pairs=pairs), written(tmp_path, pairs=pairs, show_paths=True)
    assert "…/city/test" in hidden
    assert "/home/me" not in hidden
    assert "/home/me/city/test" in shown
    assert "<bdi>runs/city</bdi>" in hidden


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/a/b/c.jpg", "…/b/c.jpg"),
        ("/c.jpg", "…/c.jpg"),
        (r"C:\data\city\test", "…/city/test"),
        ("city/test", "city/test"),
        ("/a/b/c.pth, re-ranked", "…/b/c.pth, re-ranked"),
        ("nordland, /a/b/c", "nordland, …/b/c"),
        ("hub:/a/b/c:entry", "hub:…/b/c:entry"),
        ("hub:me/models:entry?weights=/a/b/c.pth", "hub:me/models:entry?weights=…/b/c.pth"),
        ("['/a/b/c.py', '/d/e/f g.py', 'own.py']", "['…/b/c.py', '…/e/f g.py', 'own.py']"),
        ("https://huggingface.co/a/b", "https://huggingface.co/a/b"),
        ("timm:resnet18:DEFAULT", "timm:resnet18:DEFAULT"),
        ("day / night", "day / night"),
    ],
)
def test_a_path_keeps_its_last_two_parts(text, expected):
    assert shown_path(text, False) == expected
    assert shown_path(text, True) == text


def test_a_long_name_is_shortened_in_its_middle():
    assert shortened("a" * 33) == "a" * 33
    assert shortened("a" * 20 + "b" * 20) == "a" * 14 + "…" + "b" * 18
