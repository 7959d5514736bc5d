"""The endpoint: the predictor's own scores, limits on what is sent, errors of one shape, and no files."""

from __future__ import annotations

import asyncio
import io
import json
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from httpx2 import Response
from PIL import Image

from coterie.explain.colours import heat_colours
from coterie.predictor import Predictor
from coterie.serve import Limits, make_app
from coterie.serve.answers import ServeError
from coterie.serve.app import FORMATS, Line
from coterie.serve.heat import MOST_SIDE, heat_png
from tests.data.test_dataset import png
from tests.export.making import NAMES, TEMPERATURE, THRESHOLDS, small_predictor

HERE = "http://127.0.0.1"


@pytest.fixture(scope="module")
def predictor(tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    return small_predictor(tmp_path_factory.mktemp("small") / "student")


@pytest.fixture(scope="module")
def client(predictor: Predictor) -> TestClient:
    return TestClient(make_app(predictor), base_url=HERE)


def picture(width: int = 90, height: int = 60) -> Image.Image:
    pixels = np.random.default_rng(width).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(pixels)


def encoded(image: Image.Image, format: str = "PNG", **options: Any) -> bytes:
    written = io.BytesIO()
    image.save(written, format, **options)
    return written.getvalue()


def assert_refused(response: Response, status: int, code: str, part: str) -> None:
    """The one shape of errors, with the headers that every answer has."""
    assert response.status_code == status
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-content-type-options"] == "nosniff"
    content = response.json()
    assert content.keys() == {"error"}
    assert content["error"].keys() == {"code", "message"}
    assert content["error"]["code"] == code
    assert part in content["error"]["message"]


def test_a_picture_gets_the_scores_of_the_predictor_best_first(
    client: TestClient, predictor: Predictor
) -> None:
    image = picture()
    content = client.post("/api/predict", content=encoded(image)).json()
    (expected,) = predictor.predict([image])
    found = {one["label"]: one["score"] for one in content["predictions"]}
    assert found == pytest.approx(expected.scores, abs=1e-12)
    assert (content["width"], content["height"]) == (90, 60)
    scores = [one["score"] for one in content["predictions"]]
    assert scores == sorted(scores, reverse=True)
    assert [one["label"] for one in content["predictions"] if one["present"]] == list(expected.labels)
    thresholds = {one["label"]: one["threshold"] for one in content["predictions"]}
    assert thresholds == dict(zip(NAMES, THRESHOLDS, strict=True))
    best = client.post("/api/predict?top=2", content=encoded(image)).json()
    assert best["predictions"] == content["predictions"][:2]


def test_a_turned_photograph_is_seen_upright_as_in_training(client: TestClient) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = encoded(picture(), exif=exif)
    upright = encoded(picture().transpose(Image.Transpose.ROTATE_270))
    first, second = (client.post("/api/predict", content=body).json() for body in (turned, upright))
    assert first == second
    assert (first["width"], first["height"]) == (60, 90)


@pytest.mark.parametrize("format", FORMATS)
def test_every_format_that_is_promised_is_read(format: str, client: TestClient) -> None:
    body = encoded(picture(), format)
    assert client.post("/api/predict", content=body).json()["width"] == 90


@pytest.mark.parametrize(
    "kind", ["image/jpeg", "application/octet-stream", "Application/X-WWW-Form-Urlencoded"]
)
def test_the_type_of_the_body_may_be_that_of_a_browser_or_of_curl(kind: str, client: TestClient) -> None:
    response = client.post("/api/predict", content=encoded(picture()), headers={"content-type": kind})
    assert response.status_code == 200


@pytest.mark.parametrize("kind", ["text/html", "multipart/form-data; boundary=x", "application/json"])
def test_a_body_of_another_type_is_refused_with_what_to_send(kind: str, client: TestClient) -> None:
    response = client.post("/api/predict", content=encoded(picture()), headers={"content-type": kind})
    assert_refused(response, 415, "unsupported_type", "curl --data-binary @photo.jpg")


@pytest.mark.parametrize(
    ("body", "status", "code", "part"),
    [
        (b"", 400, "no_picture", "the body is empty"),
        (b"no picture", 415, "unsupported_type", "not a picture of a known format; those are JPEG, PNG"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", 415, "unsupported_type", "known format"),
        (
            encoded(picture())[:500],
            400,
            "unreadable_picture",
            "cannot be read: image file is truncated",
        ),
        (png(40_000, 40_000, 8, b""), 400, "unreadable_picture", "it has more than 178,956,970 pixels"),
        (png(8000, 7000, 8, b""), 400, "unreadable_picture", "8,000 x 7,000 pixels, and at most 50,000,000"),
    ],
    ids=["empty", "text", "eps", "truncated", "bomb", "large"],
)
def test_what_is_no_picture_is_one_clear_message(
    client: TestClient, body: bytes, status: int, code: str, part: str
) -> None:
    assert_refused(client.post("/api/predict", content=body), status, code, part)


def test_a_body_over_the_limit_is_refused_whether_it_says_its_size_or_not(predictor: Predictor) -> None:
    body = encoded(picture())
    exact = TestClient(make_app(predictor, limits=Limits(max_bytes=len(body))), base_url=HERE)
    assert exact.post("/api/predict", content=body).status_code == 200
    read: list[int] = []

    def endless() -> Iterator[bytes]:
        for number in range(1000):
            read.append(number)
            yield bytes(1000)

    assert_refused(exact.post("/api/predict", content=body + b"x"), 413, "too_large", f"{len(body):,} bytes")
    response = exact.post("/api/predict", content=endless())
    assert_refused(response, 413, "too_large", "make it smaller")


def test_a_picture_that_does_not_arrive_is_given_up(predictor: Predictor) -> None:
    impatient = make_app(predictor, limits=Limits(upload_seconds=0.05))
    response = request_slowly(impatient, encoded(picture()))
    assert response[0] == 408
    assert json.loads(response[1])["error"]["code"] == "too_slow"


def request_slowly(app: Callable[..., Any], first: bytes) -> tuple[int, bytes]:
    """Status and body of the answer to a request whose second half never comes."""
    sent: list[dict[str, Any]] = []

    async def ask() -> None:
        parts = [{"type": "http.request", "body": first, "more_body": True}]

        async def receive() -> dict[str, Any]:
            if parts:
                return parts.pop()
            await asyncio.Event().wait()
            raise AssertionError

        async def send(message: dict[str, Any]) -> None:
            sent.append(message)

        scope = {
            "type": "http",
            "method": "POST",
            "path": "/api/predict",
            "query_string": b"",
            "headers": [(b"host", b"localhost")],
            "http_version": "1.1",
            "scheme": "http",
        }
        await app(scope, receive, send)

    asyncio.run(ask())
    body = b"".join(message.get("body", b"") for message in sent[1:])
    return sent[0]["status"], body


def test_a_full_line_sends_away(predictor: Predictor) -> None:
    full = TestClient(make_app(predictor, limits=Limits(waiting=0)), base_url=HERE)
    refused = full.post("/api/predict", content=encoded(picture()))
    assert_refused(refused, 503, "busy", "try again")
    assert refused.headers["retry-after"] == "1"


def test_places_in_the_line_are_given_back_also_after_an_error() -> None:
    async def use() -> list[int]:
        line = Line(2)
        statuses = []
        for _ in range(3):
            with pytest.raises(ValueError, match="broken"):
                async with line.place():
                    raise ValueError("broken")
            async with line.place(), line.place():
                try:
                    async with line.place():
                        statuses.append(200)
                except ServeError as error:
                    statuses.append(error.status)
        return statuses

    assert asyncio.run(use()) == [503, 503, 503]


def test_one_piece_of_work_runs_at_a_time() -> None:
    together = threading.Barrier(2)

    def meets_another() -> bool:
        try:
            together.wait(0.1)
        except threading.BrokenBarrierError:
            together.reset()
            return False
        return True

    async def work() -> list[bool]:
        line = Line(3)
        return await asyncio.gather(*(line.work(meets_another) for _ in range(3)))

    assert asyncio.run(work()) == [False] * 3


def test_the_model_is_described(client: TestClient, predictor: Predictor) -> None:
    content = client.get("/api/model").json()
    expected = [{"label": name, "threshold": limit} for name, limit in zip(NAMES, THRESHOLDS, strict=True)]
    assert content["classes"] == expected
    assert content["name"] == "student"
    assert content["temperature"] == TEMPERATURE
    assert content["image_size"] == 64
    assert content["weights_sha256"] == predictor.checkpoint.weights_sha256
    assert content["maps"] is False
    assert client.get("/api/health").json() == {"status": "ok"}


def test_the_description_of_the_endpoint_names_every_way_and_every_error(client: TestClient) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    assert set(paths) == {"/api/health", "/api/model", "/api/predict"}
    predict = paths["/api/predict"]["post"]
    assert predict["requestBody"]["content"]["image/*"]["schema"]["format"] == "binary"
    assert set(predict["responses"]) == {"200", "400", "403", "408", "413", "415", "421", "422", "503"}


@pytest.mark.parametrize(
    "path",
    [
        "/etc/passwd",
        "/../checkpoint.json",
        "/page.html",
        "/..%2f..%2fetc%2fpasswd",
        "/page/",
        "/docs",
    ],
)
def test_no_file_can_be_asked_for(path: str, client: TestClient) -> None:
    assert_refused(client.get(path), 404, "not_found", "Not Found")


def test_wrong_methods_and_parameters_are_refused_in_the_same_shape(client: TestClient) -> None:
    assert_refused(client.get("/api/predict"), 405, "method_not_allowed", "GET /api/predict")
    body = encoded(picture())
    assert_refused(client.post("/api/predict?top=0", content=body), 422, "bad_parameter", "top: ")
    assert_refused(client.post("/api/predict?top=x", content=body), 422, "bad_parameter", "top: ")


def test_a_fault_of_the_server_tells_nothing_of_its_inside(
    predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("/secret/path")

    monkeypatch.setattr(Predictor, "predict", fail)
    client = TestClient(make_app(predictor), base_url=HERE, raise_server_exceptions=False)
    response = client.post("/api/predict", content=encoded(picture()))
    assert_refused(response, 500, "internal", "its log says why")
    assert "secret" not in response.text


def test_pages_of_strangers_reach_a_server_on_loopback_under_no_name(
    client: TestClient, predictor: Predictor
) -> None:
    assert_refused(client.get("/", headers={"host": "evil.example"}), 421, "wrong_host", "that name")
    for name in ("localhost:8000", "127.0.0.1", "[::1]:80"):
        assert client.get("/", headers={"host": name}).status_code == 200
    for page in ("cross-site", "same-site"):
        response = client.post("/api/predict", content=encoded(picture()), headers={"sec-fetch-site": page})
        assert_refused(response, 403, "wrong_page", "own page")
        assert client.get("/", headers={"sec-fetch-site": page}).status_code == 200  # a link leads here
    own = {"sec-fetch-site": "same-origin"}
    assert client.post("/api/predict", content=encoded(picture()), headers=own).status_code == 200
    anyone = TestClient(make_app(predictor, hosts=None), base_url="http://box.example")
    assert anyone.get("/").status_code == 200


def test_the_page_needs_nothing_from_elsewhere_and_runs_no_script_inline(client: TestClient) -> None:
    page = client.get("/")
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "<script>" not in page.text
    assert "style=" not in page.text
    for path, kind in (("/", "text/html"), ("/page.css", "text/css"), ("/page.js", "text/javascript")):
        response = client.get(path)
        assert response.headers["content-type"].startswith(kind)
        assert "http://" not in response.text
        assert "https://" not in response.text


def test_maps_are_there_with_an_explainer_alone(client: TestClient, predictor: Predictor) -> None:
    asked: list[tuple[tuple[int, int], list[str]]] = []

    def explain(image: Image.Image, classes: Sequence[str], size: tuple[int, int]) -> dict[str, np.ndarray]:
        asked.append((image.size, list(classes)))
        return {name: np.linspace(0, 1, size[0])[None].repeat(size[1], 0) for name in classes}

    body = encoded(picture())
    assert_refused(client.post("/api/map?label=plain", content=body), 404, "not_found", "Not Found")
    explained = TestClient(make_app(predictor, explainer=explain), base_url=HERE)
    assert explained.get("/api/model").json()["maps"] is True
    response = explained.post("/api/map", params={"label": NAMES[0]}, content=body)
    assert response.headers["content-type"] == "image/png"
    assert asked == [((90, 60), [NAMES[0]])]
    found = np.asarray(Image.open(io.BytesIO(response.content)))
    assert found.shape == (60, 90, 4)
    assert (np.diff(found[0, :, 3].astype(int)) >= 0).all()
    assert (found[0, 0, 3], found[0, -1, 3]) == (0, round(0.75 * 255))
    assert_refused(
        explained.post("/api/map?label=plan", content=body), 404, "no_such_class", "did you mean 'plain'?"
    )
    assert_refused(explained.post("/api/map", content=body), 422, "bad_parameter", "label")


def test_a_map_of_a_large_picture_is_made_and_sent_small(predictor: Predictor) -> None:
    made = []

    def explain(_image: Image.Image, classes: Sequence[str], size: tuple[int, int]) -> dict[str, np.ndarray]:
        made.append(size)
        return dict.fromkeys(classes, np.ones(size[::-1], np.float32))

    client = TestClient(make_app(predictor, explainer=explain), base_url=HERE)
    response = client.post("/api/map?label=plain", content=encoded(picture(2000, 1000)))
    assert Image.open(io.BytesIO(response.content)).size == (MOST_SIDE, MOST_SIDE // 2)
    client.post("/api/map?label=plain", content=encoded(picture(2000, 1)))
    assert made == [(MOST_SIDE, MOST_SIDE // 2), (MOST_SIDE, 1)]


def test_a_map_has_the_colours_of_sheets_and_no_value_beyond_them() -> None:
    values = np.array([[-1, 0, 0.5, 1, 2, np.nan]], np.float32)
    found = np.asarray(Image.open(io.BytesIO(heat_png(values))))
    assert found[0, :, 3].tolist() == [0, 0, 96, 191, 191, 0]
    expected = heat_colours(np.array([[0, 0, 0.5, 1, 1, 0]], np.float32))
    assert (found[..., :3] == (255 * expected).round()).all()


def test_one_class_is_served_as_many_are(predictor: Predictor) -> None:
    single = replace(predictor.checkpoint, class_names=("only",), thresholds=(0.5,))

    class One(Predictor):
        def predict(self, pictures: Any, **_: Any) -> Any:
            from coterie.predictor import Prediction

            return [Prediction("image 0", {"only": 0.25}, ()) for _ in pictures]

    client = TestClient(make_app(One(predictor.model, single)), base_url=HERE)
    content = client.post("/api/predict", content=encoded(picture())).json()
    assert content["predictions"] == [{"label": "only", "score": 0.25, "threshold": 0.5, "present": False}]
