"""The site that `make docs` builds: without warnings, without requests, and with a search, opened from its files."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from progeo.cli import COMMANDS

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    pytest.importorskip("material", reason="the site needs the extra docs")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", folder]
    subprocess.run(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, check=True)
    return folder


def test_no_page_is_wider_than_its_window_or_asks_another_host(site, open_page):
    pages = [page for page in sorted(site.glob("*.html")) if page.name != "404.html"]  # that is for servers
    assert len(pages) > len(list((ROOT / "docs").glob("*.md")))
    for width, dark in ((390, True), (1280, False)):
        opened = open_page(pages[0], width=width, dark=dark)
        for page in pages:
            opened.goto(page.as_uri())
            assert opened.evaluate("document.documentElement.scrollWidth") <= width, page.name


@pytest.mark.parametrize("width", [390, 1280])
def test_the_search_finds_a_setting_from_files(site, open_page, width):
    page = open_page(site / "index.html", width=width)
    if width < 500:
        page.locator("label.md-header__button[for=__search]").click()
    page.locator(".md-search__input").press_sequentially("heading_bin_deg")
    page.locator(".md-search-result__item").first.wait_for()
    assert page.locator(".md-search-result__item a[href*='help.html']").count()
    page.locator(".md-search-result__link").first.click()
    page.wait_for_url(lambda url: not url.endswith("index.html"))
    assert page.locator("mark", has_text="heading_bin_deg").count()


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (390, True)])
def test_pages_and_the_search_are_accessible(site, open_page, check_accessibility, width, dark):
    page = open_page(site / "index.html", width=width, dark=dark)
    for name in ("index", "notebook", "own_photos", "troubleshooting", "data", "api"):
        page.goto((site / f"{name}.html").as_uri())
        check_accessibility(page)
    page.add_style_tag(content="* { transition: none !important }")  # colors halfway have less contrast
    if width < 500:
        page.locator("label.md-header__button[for=__search]").click()
    page.locator(".md-search__input").press_sequentially("heading_bin_deg")
    page.locator(".md-search-result__item").first.wait_for()
    assert page.get_by_role("dialog", name="Search").count() == 1
    check_accessibility(page)


def test_the_notebook_has_its_headings_beside_it_and_its_pictures_in_it(site, open_page):
    page = open_page(site / "notebook.html")
    shown = page.get_by_role("navigation", name="Table of contents").first.inner_text()
    assert all(heading in shown for heading in ("A city", "Train", "Where was this photo taken?"))
    pictures = page.locator("article img").all()
    assert len(pictures) >= 6 and all(picture.evaluate("image => image.naturalWidth") > 100 for picture in pictures)


def test_the_help_of_every_command_is_on_its_page(site):
    text = (site / "help.html").read_text(encoding="utf-8")
    assert all(f'id="progeo-{name.replace(" ", "-")}"' in text for name in COMMANDS)


def test_the_documentation_of_python_is_that_of_the_code(site, open_page):
    page = open_page(site / "api.html")
    assert "where the encoder runs, such as" in page.locator("main").inner_text()
