"""The pages of a running service, driven in Chromium: photos are dropped, chosen and pasted, and their places read."""

import base64
import json

import numpy as np
import pytest
from indexes import blurred, command
from PIL import Image
from serving import serving

from progeo.export.weights import save_encoder
from progeo.models.encoder import build_encoder

TOKEN = "toy-token"
KNOWS_TOKEN = f"sessionStorage.setItem('progeo token', '{TOKEN}')"
DROP = """([kind, name, content]) => {
    const bytes = Uint8Array.from(atob(content), letter => letter.charCodeAt(0)), data = new DataTransfer();
    data.items.add(new File([bytes], name, { type: "image/jpeg" }));
    document.dispatchEvent(kind === "paste" ? new ClipboardEvent(kind, { clipboardData: data })
        : new DragEvent(kind, { dataTransfer: data, cancelable: true }));
}"""


@pytest.fixture(scope="module")
def index(city, tmp_path_factory):
    """An index of the training images, calibrated on blurred copies of them and on others that are not in it."""
    folder = tmp_path_factory.mktemp("served")
    encoder = save_encoder(
        folder / "encoder", build_encoder("tiny-resnet", "random", 48).eval(), provenance={}, recalls={"val R@1": 91.3}
    )
    cache = folder / "descriptors"
    command("index build", cache, folder=city / "train", encoder=encoder, out=folder / "index")
    blurred([*sorted((city / "train").iterdir())[::2], *(city / "test/database").iterdir()], folder / "photos")
    command("index calibrate", cache, folder=folder / "photos", index=folder / "index")
    return folder / "index"


@pytest.fixture(scope="module")
def service(index):
    """The address of a service of it that wants a token."""
    with serving(index, decoders=1, token=TOKEN) as client:
        yield str(client.base_url).rstrip("/")


@pytest.fixture
def open_service(service, open_address):
    def open_it(path="", **settings):
        page = open_address(f"{service}/{path}", init_script=KNOWS_TOKEN, **settings)
        page.locator("#map canvas").wait_for()
        return page

    return open_it


@pytest.fixture(scope="module")
def known(city):
    """A photo that is in the index."""
    return sorted((city / "train").iterdir())[0]


@pytest.fixture(scope="module")
def noise(tmp_path_factory):
    """A photo of nothing."""
    path = tmp_path_factory.mktemp("noise") / "noise.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(path)
    return path


def give(page, kind, path, name="photo.jpg"):
    page.evaluate(DROP, [kind, name, base64.b64encode(path.read_bytes()).decode()])


def title(page):
    page.locator("#answer .words, #answer .error").wait_for()
    return page.locator("#answer-title").inner_text()


def position(path):
    latitude, longitude = path.name.split("@")[5:7]
    return f"{float(latitude):.5f}, {float(longitude):.5f}"


def test_a_dropped_photo_has_its_place_confidence_matches_and_map(open_service, known, check_accessibility):
    page = open_service(granted=["clipboard-read", "clipboard-write"])
    assert page.locator("#answer, #matches").first.is_hidden()
    check_accessibility(page)
    give(page, "drop", known)
    assert title(page) == position(known)
    assert "within 25 m" in page.locator("#answer .words").inner_text()
    assert page.locator("#status").text_content().startswith(f"photo.jpg: {position(known)}. ")
    link = page.locator("#answer").get_by_role("link", name="OpenStreetMap").get_attribute("href")
    assert link.startswith(f"https://www.openstreetmap.org/?mlat={position(known).split(', ')[0]}")
    page.locator("#match-list img[src^=blob]").nth(4).wait_for()
    assert page.locator("#match-list > li").count() == 5
    assert page.locator("#pair img[src^=blob]").count() == 2
    key = page.locator(".map-shapes").inner_text()
    assert "here" in key and "estimated position" in key and "images of the index" in key
    page.get_by_role("button", name="Copy coordinates").click()
    assert page.evaluate("navigator.clipboard.readText()") == position(known)
    with page.expect_download() as download:
        page.get_by_role("button", name="Download GeoJSON").click()
    (feature,) = json.loads(download.value.path().read_text())["features"]
    latitude, longitude = map(float, position(known).split(", "))
    assert feature["geometry"]["coordinates"] == pytest.approx([longitude, latitude], abs=1e-5)
    assert (feature["properties"]["photo"], feature["properties"]["match"]) == ("photo.jpg", known.name)
    check_accessibility(page)


def test_a_photo_of_nothing_is_unknown(open_service, noise):
    page = open_service()
    give(page, "paste", noise, "noise.png")
    assert title(page) == "Unknown"
    assert "Unknown: the best match is within 25 m with a probability of" in page.locator("#answer .words").inner_text()
    assert "At best: 37.7" in page.locator("#answer").inner_text()
    assert "estimated position" not in page.locator(".map-shapes").inner_text()


def test_everything_works_by_keyboard(open_service, known):
    page = open_service()
    page.on("filechooser", lambda chooser: None)  # or a chooser that opens at once would be missed
    for _ in range(5):  # after the skip link and those to the pages
        page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "choose"
    with page.expect_file_chooser() as chooser:
        page.keyboard.press("Enter")
    chooser.value.set_files([known, known])
    page.get_by_text("2 of 2 photos are done").wait_for()
    page.locator("#photos button").nth(1).focus()
    page.keyboard.press("Enter")
    assert page.locator("#photos button").nth(1).get_attribute("aria-current") == "true"
    page.locator("#match-list button").nth(2).focus()
    page.keyboard.press("Enter")
    assert page.locator("#match-list button").nth(2).get_attribute("aria-pressed") == "true"
    assert page.evaluate("document.activeElement.getAttribute('aria-label')") == "Compare with match 3"
    assert "Match 3" in page.locator("#pair").inner_text()


def test_a_position_that_is_typed_or_picked_restricts_the_search(open_service, known):
    page = open_service()
    give(page, "drop", known)
    title(page)
    page.get_by_text("Options").click()
    page.get_by_label("latitude, longitude").fill("91, 0")
    page.get_by_label("latitude, longitude").press("Enter")
    assert "such as 37.7749" in page.locator("#near-text").inner_text()
    page.get_by_label("latitude, longitude").fill(position(known))
    page.get_by_label("within meters").fill("30")
    page.get_by_label("Matches of each photo").fill("2")
    page.get_by_role("button", name="Localize again").click()
    page.locator("#answer .words", has_text="No confidence: it is calibrated on searches of the complete").wait_for()
    assert page.locator("#match-list > li").count() == 2
    assert "searched only within" in page.locator(".map-shapes").inner_text()
    page.get_by_role("button", name="Anywhere").click()
    assert page.get_by_label("latitude, longitude").input_value() == ""
    page.get_by_role("button", name="Pick on the map").click()
    page.keyboard.press("Enter")
    picked = page.get_by_label("latitude, longitude").input_value()
    assert [float(value) for value in picked.split(",")] == pytest.approx([37.77, -122.4], abs=0.3)


@pytest.mark.parametrize(
    ("field", "wrong", "told", "correct"),
    [
        ("near", "37.7 N, abc", "such as 37.7749, -122.4194", ""),
        pytest.param("radius", "0", "meters above 0", "300000", marks=pytest.mark.slow),
        pytest.param("top", "1.5", "from 1 to 20", "3", marks=pytest.mark.slow),
        pytest.param("top", "200", "from 1 to 20", "3", marks=pytest.mark.slow),
        pytest.param("near", "0, 181", "such as 37.7749, -122.4194", "", marks=pytest.mark.slow),
        pytest.param("top", "0", "from 1 to 20", "3", marks=pytest.mark.slow),
    ],
)
def test_a_photo_is_sent_once_the_options_are_valid(
    field, wrong, told, correct, open_service, known, check_accessibility
):
    page = open_service()
    page.get_by_text("Options").click()
    page.locator("#near").fill(position(known) if field == "radius" else "")
    page.locator(f"#{field}").fill(wrong)
    page.get_by_text("Options").click()
    sent = []
    page.on("request", lambda request: request.url.endswith("/localize") and sent.append(request))
    give(page, "drop", known)
    assert page.evaluate("document.activeElement.id") == field
    assert page.locator(f"#{field}").get_attribute("aria-invalid") == "true"
    assert told in page.locator(".option-text:visible").inner_text()
    assert "Not sent yet: correct the options first" in page.locator("#answer").inner_text()
    assert ": to be corrected" in page.locator("#options summary").inner_text()
    check_accessibility(page)
    page.locator("#top" if field != "top" else "#near").focus()  # other fields can be reached
    assert page.evaluate("document.activeElement.id") != field and not sent
    page.locator(f"#{field}").fill(correct)
    page.locator(f"#{field}").press("Enter")
    assert title(page) == position(known)
    assert ("No confidence" in page.locator("#answer .words").inner_text()) == (field == "radius")
    assert page.locator("#match-list > li").count() == (3 if field == "top" else 5)
    page.locator(f"#{field}").fill(wrong)
    page.get_by_role("button", name="Localize again").click()
    assert title(page) == position(known) and len(sent) == 1  # the answer stays


@pytest.mark.parametrize("dark", [pytest.param(False, marks=pytest.mark.slow), True])
def test_a_phone_shows_all_of_it_and_offers_its_camera(dark, open_service, known, check_accessibility):
    page = open_service(width=390, touch=True, dark=dark)
    assert page.get_by_label("Take a photo").get_attribute("capture") == "environment"
    assert page.get_by_text("Take a photo").is_visible()
    page.get_by_text("Options").tap()
    page.route("**/images/**", lambda route: None)
    page.get_by_label("Take a photo").set_input_files(known)
    assert title(page) == position(known)
    assert page.evaluate("document.documentElement.scrollWidth") == 390  # also with names in place of pictures
    page.unroute_all()  # which continues those that are held
    page.locator("#match-list img[src^=blob]").nth(4).wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    check_accessibility(page)


def test_an_unreadable_file_is_told_and_others_are_localized(open_service, known, tmp_path):
    (tmp_path / "a<b>.jpg").write_text("no photo")
    page = open_service(ignored=("status of 422",))
    page.locator("#choose").set_input_files([tmp_path / "a<b>.jpg", known])
    page.get_by_text("2 of 2 photos are done").wait_for()
    assert title(page) == "Not localized"
    assert "a<b>.jpg" in page.locator("#answer .error").inner_text()
    page.get_by_role("button", name="Try again").click()
    assert title(page) == "Not localized"
    page.locator("#photos button").nth(1).click()
    assert title(page) == position(known)
    page.get_by_role("button", name="Remove all photos").click()
    assert page.locator("#answer").is_hidden() and page.locator("#photos").is_hidden()


@pytest.mark.slow
def test_the_token_is_asked_for_and_kept_for_the_session(service, open_address, known, check_accessibility):
    page = open_address(f"{service}/", ignored=("status of 401",))
    give(page, "drop", known)
    page.get_by_text("answers only with the token").wait_for()
    check_accessibility(page)
    page.keyboard.type("wrong")
    page.keyboard.press("Enter")
    page.get_by_text("does not accept this token").wait_for()
    page.keyboard.type(TOKEN)
    page.keyboard.press("Enter")
    assert title(page) == position(known)
    assert page.evaluate("document.activeElement.id") == "main"
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "choose"
    page.get_by_role("link", name="For programs").click()
    page.get_by_role("link", name="The place index").click()
    page.locator("#encoder-facts > div").first.wait_for()
    assert page.locator("#token-form").is_hidden()


@pytest.mark.slow
def test_a_busy_service_is_asked_again(open_service, known):
    page = open_service(ignored=("status of 429",))
    statuses = []

    def answer(route):
        statuses.append(len(statuses))
        if len(statuses) == 1:
            route.fulfill(status=429, headers={"Retry-After": "1"}, json={"detail": "busy"})
        else:
            route.continue_()

    page.route("**/localize", answer)
    give(page, "drop", known)
    page.locator("#answer", has_text="The service is busy, again in 1 s").wait_for()
    assert title(page) == position(known)
    assert len(statuses) == 2


@pytest.mark.slow
def test_pictures_that_failed_are_asked_for_again(open_service, known):
    page = open_service(ignored=("status of 503",))
    page.route("**/images/**", lambda route: route.fulfill(status=503))

    def answer(route):
        found = route.fetch().json()
        found["results"][0]["matches"][0]["lines"] = [(0.5, 0.5, 0.5, 0.5)]
        route.fulfill(json=found)

    page.route("**/localize", answer)
    give(page, "drop", known)
    page.locator("#pair .missing", has_text="The service answered with status 503.").wait_for()
    page.locator("#match-list .missing").nth(4).wait_for()
    assert page.locator("#pair svg, #pair .lines-shown").count() == 0
    page.unroute("**/images/**")
    page.get_by_text("Options").click()
    page.get_by_role("button", name="Localize again").click()
    page.locator("#match-list img[src^=blob]").nth(4).wait_for()
    page.locator("#pair svg line").first.wait_for(state="attached")
    assert page.get_by_text("line between 1 matched point").is_visible()


@pytest.mark.parametrize("orientation", [pytest.param("exif", marks=pytest.mark.slow), "ignore"])
def test_lines_are_drawn_only_if_photos_were_matched_upright(orientation, open_service, tmp_path):
    image = Image.new("RGB", (80, 40), "gray")
    image.getexif()[0x0112] = 6  # shown as 40 x 80 pixels
    image.save(tmp_path / "rotated.jpg", exif=image.getexif())
    page = open_service()

    def answer(route):
        found = route.fetch().json() | {"orientation": orientation}
        found["results"][0]["matches"][0]["lines"] = [(0.25, 0.1, 0.5, 0.5)]
        route.fulfill(json=found)

    page.route("**/localize", answer)
    give(page, "drop", tmp_path / "rotated.jpg")
    page.locator("#pair img[src^=blob]").nth(1).wait_for()
    if orientation == "ignore":
        assert page.locator("#pair svg, #pair .lines-shown").count() == 0
        return
    line = page.locator("#pair svg line").first
    line.wait_for(state="attached")
    box, around = page.locator("#pair img").first.bounding_box(), page.locator("#pair svg").bounding_box()
    scale = min(box["width"] / 40, box["height"] / 80)
    left, top = box["x"] + (box["width"] - scale * 40) / 2, box["y"] + (box["height"] - scale * 80) / 2
    x, y = (around[of] + float(line.get_attribute(f"{of}1")) for of in "xy")
    assert (x, y) == pytest.approx((left + scale * 40 / 4, top + scale * 80 / 10), abs=1)


def test_the_page_on_the_index_shows_its_coverage_counts_and_encoder(open_service, city, check_accessibility):
    page = open_service("index")
    page.locator("#encoder-facts > div").first.wait_for()
    count = len(list((city / "train").iterdir()))
    assert page.locator("#figures").inner_text().split("\n")[:2] == ["images", str(count)]
    assert f"images of the index\n{count}" in page.locator(".map-shapes").inner_text()
    text = page.locator("main").inner_text()
    assert "within 25 m" in text and "tiny-resnet of open_clip" in text and "91.3" in text
    assert str(city.parent) not in page.content()
    assert "do not use them to find or follow people" in page.locator("footer").inner_text()
    check_accessibility(page)
