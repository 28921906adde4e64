"""The page of runs in a browser."""

from datetime import datetime, timedelta

import pytest
from written_runs import write_run, write_stage

from progeo.runs.page import write_runs_page
from progeo.runs.reading import read_stages

NOW = datetime.fromisoformat("2026-11-29T01:02:03+00:00")
EVIL = "<img src=x onerror=alert(1)>\"'`{{7*7}}</script><script>alert(2)</script>"


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The page of two runs."""
    folder = tmp_path_factory.mktemp("runs")
    runs = [
        write_run(folder / name, gain=gain, settings={"epochs": 3, "patience": gain})
        for name, gain in (("a", 0), ("b", 5.0))
    ]
    write_runs_page(folder / "page.html", read_stages(runs), written=NOW)
    return folder / "page.html"


@pytest.mark.parametrize(
    ("width", "dark", "touch"), [pytest.param(1280, False, False, marks=pytest.mark.slow), (390, True, True)]
)
def test_the_curves_of_runs_are_over_one_another(written, open_page, check_accessibility, width, dark, touch):
    page = open_page(written, width=width, dark=dark, touch=touch)
    assert page.title() == "Runs compared"
    assert page.locator("h2").all_inner_texts() == ["Stage 1, prompts", "Stage 2, encoder"]
    recalls = page.get_by_role("img", name="R@1")
    assert recalls.locator("polyline").count() == 2
    assert recalls.locator("title").all_text_contents()[-2:] == ["b: 60 at 2", "b: 55 at 3"]
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert "val R@1 60.0, epoch 2" in page.get_by_role("table").first.get_by_role("row").last.inner_text()
    assert page.get_by_role("row", name="training.patience").inner_text().split()[-2:] == ["0", "5.0"]
    check_accessibility(page)


@pytest.mark.slow
def test_settings_and_groups_unfold_by_touch_click_and_key(written, open_page, check_accessibility):
    page = open_page(written, width=390, touch=True)
    page.get_by_text("Groups", exact=True).tap()
    assert "70.0 %" in page.get_by_role("row", name="a, group 2").inner_text()
    page = open_page(written)
    first, second = page.get_by_text("All settings of b").all()
    first.click()
    second.focus()
    page.keyboard.press("Enter")
    facts = page.locator("details[open] .facts")
    assert facts.count() == 2
    assert "…/b/train" in facts.last.inner_text() and "/data" not in page.content()
    check_accessibility(page)


@pytest.mark.slow
def test_a_page_that_is_followed_says_how_old_it_is_and_comes_again_where_it_was(tmp_path, open_page):
    run = write_run(tmp_path / "a")
    now = datetime.now().astimezone()
    write_runs_page(tmp_path / "page.html", read_stages([run]), written=now - timedelta(seconds=90), reload_s=1)
    page = open_page(tmp_path / "page.html")
    assert 90 <= int(page.locator("time").inner_text().removesuffix(" s ago")) < 150
    page.evaluate("scrollTo(0, 600)")
    write_runs_page(tmp_path / "page.html", read_stages([run]), written=now)
    page.wait_for_selector("time:not(.age)")  # the page was loaded again
    assert page.locator("time").inner_text() == f"{now:%Y-%m-%d %H:%M:%S}"
    assert page.evaluate("scrollY") == 600


def test_hostile_names_and_settings_do_nothing(tmp_path, open_page, check_accessibility):
    rows = [
        {"epoch": 1, "step": 1, "steps_per_epoch": 1, "loss": 1.0, EVIL: 2.0, "x": 3.0},
        {"epoch": 1, "loss": 1.0, f"val {EVIL}": 50.0},
    ]
    names = ("\u202eevil", "a" * 200, '"><b>x')
    stages = [
        write_stage(tmp_path / name, {"training": {"epochs": EVIL, EVIL: EVIL}, "seed": name}, rows) for name in names
    ]
    write_runs_page(tmp_path / "page.html", read_stages(stages), written=NOW)
    page = open_page(tmp_path / "page.html", width=390)
    assert page.evaluate("document.images.length + document.querySelectorAll('main b').length") == 0
    assert page.locator("script").count() == 1
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert r"\u202eevil" in page.locator("main").inner_text()
    check_accessibility(page)


def test_a_run_without_metrics_says_so(tmp_path, open_page):
    stage = write_stage(tmp_path / "a", {"training": {"epochs": 3}}, [])
    write_runs_page(tmp_path / "page.html", read_stages([stage]), written=NOW)
    page = open_page(tmp_path / "page.html")
    assert page.get_by_text("There are no metrics yet.").is_visible()
