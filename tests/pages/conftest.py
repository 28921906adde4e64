"""Pages in headless Chromium: opened as files, driven by Playwright, and checked for errors, requests and axe-core."""

import json
import os
import shutil

import pytest

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


@pytest.fixture
def open_page(browser):
    """Open a file; at the end of the test, its page had no error or warning and requested nothing from any host.

    `ignored` are parts of messages, and of addresses of requests, that a test provokes.
    """
    contexts, seen = [], []

    def open_file(
        path, *, width=1280, dark=False, touch=False, height=800, reduced_motion=False, ignored=(), fragment=""
    ):
        context = browser.new_context(
            viewport={"width": width, "height": 800},
            color_scheme="dark" if dark else "light",
            reduced_motion="reduce" if reduced_motion else "no-preference",
            has_touch=touch,
            is_mobile=touch,
        )
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(10_000)

        def note(kind, text):
            if not any(part in text for part in ignored):
                seen.append(f"{kind}: {text}")

        page.on("console", lambda each: each.type in ("error", "warning") and note(each.type, each.text))
        page.on("pageerror", lambda error: note("exception", str(error)))
        page.on("request", lambda each: each.url.startswith(_OWN_SCHEMES) or note("request", each.url))
        page.goto(path.as_uri() + fragment)
        return page

    yield open_file
    for context in contexts:
        context.close()
    assert not seen


@pytest.fixture
def check_accessibility():
    """Run axe-core on a page, which has no serious or critical finding."""
    from axe_playwright_python.sync_playwright import Axe

    def check(page):
        found = Axe().run(page).response["violations"]
        serious = [each for each in found if each["impact"] in _SERIOUS]
        shown = [[each["id"], each["help"], [node["html"][:200] for node in each["nodes"][:3]]] for each in serious]
        assert not serious, json.dumps(shown, indent=1)

    return check


@pytest.fixture
def pinch():
    """Put two fingers on the middle of an element and move them apart or together, by touch events of Chromium."""

    def move(page, selector, *, factor=2.0, steps=5, start_px=60):
        box = page.locator(selector).bounding_box()
        x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        session = page.context.new_cdp_session(page)

        def send(kind, *distances):
            points = [
                {"x": x + sign * distance / 2, "y": y, "id": number}
                for distance in distances
                for number, sign in enumerate((-1, 1))
            ]
            session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

        send("touchStart", start_px)
        for step in range(1, steps + 1):
            send("touchMove", start_px * factor ** (step / steps))
        send("touchEnd")

    return move
