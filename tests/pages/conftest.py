"""Pages in headless Chromium: opened from files or a service, and checked for errors, requests and axe-core."""

import json
import os
import shutil

import pytest
from jinja2 import ChoiceLoader, DictLoader

from progeo.pages import page

_NAMES = ("chromium", "chromium-browser", "google-chrome")
_OWN_SCHEMES = ("file:", "data:", "blob:")
_SERIOUS = ("serious", "critical")


@pytest.fixture(scope="session")
def browser(tmp_path_factory):
    """One Chromium for all tests of a process."""
    executable = next(filter(None, map(shutil.which, _NAMES)), None)
    if executable is None:
        reason = f"page tests need Chromium: none of {', '.join(_NAMES)} is installed"
        pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)
    from playwright.sync_api import sync_playwright

    home = str(tmp_path_factory.mktemp("browser"))  # Chromium keeps caches and settings in its home
    places = dict.fromkeys(("HOME", "XDG_CONFIG_HOME", "XDG_CACHE_HOME"), home)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=executable, args=["--no-sandbox"], env={**os.environ, **places}
        )
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def idle_pages(browser):
    """Blank pages by whether they have touch, opened by earlier tests: a new one would cost a process of Chromium."""
    pages = {False: [], True: []}
    yield pages
    for each in [*pages[False], *pages[True]]:
        each.context.close()


@pytest.fixture
def open_page(browser, idle_pages):
    """Open a file; at the end of the test, its page had no error or warning and requested nothing from any host.

    `init_script` runs before the script of the page. `ignored` are parts of messages, and of addresses of requests,
    that a test provokes.
    """
    used, seen = [], []

    def open_file(
        path,
        *,
        width=1280,
        height=800,
        dark=False,
        touch=False,
        reduced_motion=False,
        init_script="",
        fragment="",
        ignored=(),
    ):
        if idle_pages[touch] and not init_script:
            opened = idle_pages[touch].pop()
        else:
            opened = browser.new_context(has_touch=touch, is_mobile=touch).new_page()
            opened.set_default_timeout(10_000)
            opened.add_init_script(init_script)
        _emulate(opened, width=width, height=height, dark=dark, reduced_motion=reduced_motion)
        listeners = _listen(opened, seen, own=_OWN_SCHEMES, ignored=ignored)
        used.append((opened, listeners, None if init_script else idle_pages[touch]))
        opened.goto(path.as_uri() + fragment)
        return opened

    yield open_file
    for opened, listeners, idle in used:
        if idle is None:  # a script that runs before those of pages stays
            opened.context.close()
            continue
        opened.mouse.move(0, 0)
        opened.goto("about:blank")
        opened.unroute_all()
        for event, listener in listeners.items():
            opened.remove_listener(event, listener)
        idle.append(opened)
    assert not seen


@pytest.fixture
def open_address(browser):
    """Open an address of a service in a context of its own, whose storage is empty; tests as `open_page` does.

    `granted` are permissions of the page.
    """
    contexts, seen = [], []

    def open_it(address, *, width=1280, height=800, dark=False, touch=False, init_script="", granted=(), ignored=()):
        contexts.append(browser.new_context(has_touch=touch, is_mobile=touch, permissions=list(granted)))
        opened = contexts[-1].new_page()
        opened.set_default_timeout(10_000)
        opened.add_init_script(init_script)
        _emulate(opened, width=width, height=height, dark=dark, reduced_motion=True)
        host = "/".join(address.split("/")[:3])
        _listen(opened, seen, own=(f"{host}/", *_OWN_SCHEMES), ignored=ignored)
        opened.goto(address)
        return opened

    yield open_it
    for context in contexts:
        context.close()
    assert not seen


def _emulate(page, *, width, height, dark, reduced_motion):
    page.set_viewport_size({"width": width, "height": height})
    page.emulate_media(
        color_scheme="dark" if dark else "light", reduced_motion="reduce" if reduced_motion else "no-preference"
    )


def _listen(page, seen, *, own, ignored):
    """Note errors, warnings, and requests of addresses that do not start with one of `own`."""

    def note(kind, text):
        if not any(part in text for part in ignored):
            seen.append(f"{kind}: {text}")

    listeners = {
        "console": lambda each: each.type in ("error", "warning") and note(each.type, each.text),
        "pageerror": lambda error: note("exception", str(error)),
        "request": lambda each: each.url.startswith(own) or note("request", each.url),
    }
    for event, listener in listeners.items():
        page.on(event, listener)
    return listeners


@pytest.fixture
def use_template(monkeypatch):
    """Let pages be written from the source of a template, under a name."""

    def use(name, source):
        for show_paths in (False, True):
            environment = page._environment(show_paths)
            loaders = [DictLoader({name: source}), environment.loader]
            monkeypatch.setattr(environment, "loader", ChoiceLoader(loaders))

    yield use
    page._environment.cache_clear()


@pytest.fixture
def check_accessibility():
    """Run axe-core on a page, which has no serious or critical finding."""
    from axe_playwright_python.sync_playwright import Axe

    def check(page):
        options = {"resultTypes": ["violations"], "preload": False}  # takes half the time, and asks files for no style
        found = Axe().run(page, options=options).response["violations"]
        serious = [each for each in found if each["impact"] in _SERIOUS]
        shown = [[each["id"], each["help"], [node["html"][:200] for node in each["nodes"][:3]]] for each in serious]
        assert not serious, json.dumps(shown, indent=1)

    return check


@pytest.fixture
def touch():
    """Move one finger or two on the middle of an element by touch events of Chromium, as `touch(page, selector, ...)`.

    Fingers are `apart_px` at the start and `factor` times as far at the end; a single finger has `apart_px` 0. All of
    them move by `down_px`.
    """

    def move(page, selector, *, apart_px=0, factor=1.0, down_px=0, steps=5):
        box = page.locator(selector).bounding_box()
        x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        session = page.context.new_cdp_session(page)
        for step in range(steps + 1):
            half = apart_px / 2 * factor ** (step / steps)
            places = [x - half, x + half] if apart_px else [x]
            fingers = [{"x": place, "y": y + down_px * step / steps, "id": id} for id, place in enumerate(places)]
            session.send(
                "Input.dispatchTouchEvent", {"type": "touchMove" if step else "touchStart", "touchPoints": fingers}
            )
        session.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})

    return move


@pytest.fixture
def pinch(touch):
    """Pinch the middle of an element with two fingers: they end `factor` times as far apart as they start."""
    return lambda page, selector, *, factor=2.0: touch(page, selector, apart_px=60, factor=factor)
