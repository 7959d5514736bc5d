"""The page in a real browser: a photograph is chosen, dropped, labelled and explained."""

from __future__ import annotations

import base64
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import uvicorn
from PIL import Image
from playwright.sync_api import Locator, Page, expect

from coterie.predictor import Predictor
from coterie.serve import Limits, make_app
from coterie.serve.server import address, listen
from tests.browser import OPTIONS, find_browser, page  # noqa: F401  (a fixture)
from tests.export.making import small_predictor

HORIZONTAL = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
DROP = """async ([name, type, content]) => {
  const bytes = Uint8Array.from(atob(content), (letter) => letter.charCodeAt(0));
  const transfer = new DataTransfer();
  transfer.items.add(new File([bytes], name, { type }));
  for (const kind of ["dragover", "drop"]) {
    const options = { dataTransfer: transfer, bubbles: true, cancelable: true };
    document.body.dispatchEvent(new DragEvent(kind, options));
  }
}"""


@pytest.fixture(scope="module")
def predictor(tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    return small_predictor(tmp_path_factory.mktemp("small") / "student")


@pytest.fixture(scope="module")
def url(predictor: Predictor) -> Iterator[str]:
    """The address of a server with maps that rise from left to right."""

    def explain(_image: Image.Image, classes: Sequence[str], size: tuple[int, int]) -> dict[str, np.ndarray]:
        return {name: np.linspace(0, 1, size[0])[None].repeat(size[1], 0) for name in classes}

    app = make_app(predictor, explainer=explain, limits=Limits(max_bytes=100_000))
    listening = listen("127.0.0.1", 0)
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
    thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    yield address(listening)
    server.should_exit = True
    thread.join(10)


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(5).integers(0, 256, (6, 9, 3), np.uint8)
    Image.fromarray(pixels).resize((180, 120)).save(tmp_path / "photo.jpg")
    return tmp_path / "photo.jpg"


def wait_for_size(page: Page, image: Locator, width: int, height: int) -> None:  # noqa: F811
    """Wait until a picture of this size is loaded; fails where that never happens."""
    size = "([image, width, height]) => image.naturalWidth === width && image.naturalHeight === height"
    page.wait_for_function(size, arg=[image.element_handle(), width, height])


def shown(page: Page) -> list[tuple[str, str, bool]]:  # noqa: F811
    """Name, number and whether it is marked, of every label on the page."""
    page.locator("#labels li").first.wait_for()
    rows = page.locator("#labels li").all()
    return [
        (
            row.locator(".name").inner_text(),
            row.locator(".number").inner_text(),
            "present" in (row.get_attribute("class") or ""),
        )
        for row in rows
    ]


def expected(predictor: Predictor, photo: Path) -> list[tuple[str, str, bool]]:
    (prediction,) = predictor.predict([photo])
    best_first = sorted(prediction.scores.items(), key=lambda pair: -pair[1])
    return [(name, f"{score:.2f}", name in prediction.labels) for name, score in best_first]


def test_a_photograph_that_is_chosen_gets_labels_with_bars(
    page: Page,  # noqa: F811
    url: str,
    predictor: Predictor,
    photo: Path,
) -> None:
    page.goto(url)
    page.set_input_files("#file", photo)
    found = shown(page)
    assert found == expected(predictor, photo)
    assert any(present for _, _, present in found)
    bar = page.locator("#labels li .bar").first.bounding_box()
    score = page.locator("#labels li .score").first.bounding_box()
    assert bar is not None
    assert score is not None
    assert score["width"] / bar["width"] == pytest.approx(float(found[0][1]), abs=0.01)
    wait_for_size(page, page.locator("#photo"), 180, 120)
    expect(page.locator("#status")).to_have_text("")
    photo_box = page.locator("#photo").bounding_box()
    assert photo_box is not None
    assert photo_box["width"] / photo_box["height"] == pytest.approx(1.5, abs=0.02)


def test_a_photograph_can_be_dropped_and_another_after_it(
    page: Page,  # noqa: F811
    url: str,
    predictor: Predictor,
    photo: Path,
) -> None:
    page.goto(url)
    page.evaluate(DROP, ["photo.jpg", "image/jpeg", base64.b64encode(photo.read_bytes()).decode()])
    assert shown(page) == expected(predictor, photo)
    other = photo.with_name("other.png")
    Image.new("RGB", (50, 50), (255, 0, 0)).save(other)
    page.set_input_files("#file", other)
    page.wait_for_function("document.getElementById('photo').naturalWidth === 50")
    page.locator("#status:empty").wait_for(state="attached")
    assert shown(page) == expected(predictor, other)


def test_a_label_shows_and_hides_where_the_model_looks(
    page: Page,  # noqa: F811
    url: str,
    photo: Path,
) -> None:
    page.goto(url)
    page.set_input_files("#file", photo)
    first, second = (page.locator("#labels .name").nth(number) for number in (0, 1))
    first.click()
    overlay = page.locator("#map")
    overlay.wait_for()
    wait_for_size(page, overlay, 180, 120)
    assert overlay.bounding_box() == page.locator("#photo").bounding_box()
    expect(first).to_have_attribute("aria-pressed", "true")
    second.click()
    expect(first).to_have_attribute("aria-pressed", "false")
    overlay.wait_for()
    second.click()
    overlay.wait_for(state="hidden")


def test_a_photograph_that_is_too_large_is_not_sent(page: Page, url: str, tmp_path: Path) -> None:  # noqa: F811
    noise = np.random.default_rng(0).integers(0, 256, (300, 300, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "large.png")
    page.goto(url)
    page.set_input_files("#file", tmp_path / "large.png")
    page.locator("#status.wrong").wait_for()
    expect(page.locator("#status")).to_have_text("The picture has more than 100,000 bytes; make it smaller.")
    expect(page.locator("#result")).to_be_hidden()


def test_what_the_server_refuses_is_said_in_its_words(url: str, tmp_path: Path) -> None:
    """A browser writes every refused request to its console, so the fixture `page` would fail here."""
    path = find_browser()
    from playwright.sync_api import sync_playwright

    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=list(OPTIONS))
        tab = browser.new_page()
        tab.goto(url)
        tab.set_input_files("#file", tmp_path / "broken.jpg")
        tab.locator("#status.wrong").wait_for()
        message = tab.locator("#status").inner_text()
        browser.close()
    assert message.startswith("the body is not a picture of a known format")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1200])
def test_the_page_fits_a_phone_and_follows_the_system_in_light_and_dark(
    page: Page,  # noqa: F811
    url: str,
    photo: Path,
    width: int,
    scheme: str,
    tmp_path: Path,
) -> None:
    page.set_viewport_size({"width": width, "height": 844})
    page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
    page.goto(url)
    page.set_input_files("#file", photo)
    shown(page)
    page.screenshot(path=tmp_path / f"{scheme}-{width}.png", full_page=True)
    assert page.evaluate(HORIZONTAL) == 0
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    lightness = sum(int(part) for part in paper.strip("rgb()").split(",")) / 3
    assert lightness > 200 if scheme == "light" else lightness < 50
    photo_box = page.locator("#photo").bounding_box()
    labels_box = page.locator("#labels").bounding_box()
    assert photo_box is not None
    assert labels_box is not None
    below = labels_box["y"] >= photo_box["y"] + photo_box["height"]
    assert below == (width == 390)
