"""The web application around one classifier: a page, and an endpoint that takes the bytes of a picture."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from importlib.metadata import version
from importlib.resources import files
from typing import Annotated, Any, TypeVar

import numpy as np
import numpy.typing as npt
from fastapi import FastAPI, Query, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from PIL import Image
from starlette.exceptions import HTTPException
from starlette.responses import Response

from coterie.data.dataset import StoredImage, UnknownFormat, UnreadableImage, open_image
from coterie.errors import did_you_mean
from coterie.predictor import Predictor
from coterie.serve.answers import (
    HEADERS,
    ClassThreshold,
    Health,
    LabelScore,
    ModelDescription,
    Prediction,
    ServeError,
    documented,
    failure,
    on_bad_parameter,
    on_http_error,
    on_own_fault,
    on_serve_error,
)
from coterie.serve.heat import heat_png, shown_size

T = TypeVar("T")
# maps(picture, class names, (width, height)) -> for each class a map float [H, W] in 0..1
Maps = Callable[[Image.Image, Sequence[str], tuple[int, int]], Mapping[str, npt.NDArray[np.float32]]]

# Formats that photographs come in. Others have decoders that hardly anybody looks at, or that run programs.
Image.init()
FORMATS = tuple(
    name for name in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "PPM") if name in Image.OPEN
)
# What senders call a body of bytes: a browser by the picture's type, curl --data-binary by the last.
BODY_TYPES = ("", "application/octet-stream", "application/x-www-form-urlencoded")
SEND = "send the bytes of the picture as the body: curl --data-binary @photo.jpg URL"
LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})
# How browsers say that another's page asks. It could not read the answer, but keep the server busy.
STRANGERS = frozenset({"cross-site", "same-site"})
PAGE_FILES = {
    "/": ("page.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
}


@dataclass(frozen=True)
class Limits:
    """What a request may ask for. `waiting`: requests at once, of which one is worked on."""

    max_bytes: int = 20_000_000
    max_pixels: int = 50_000_000
    waiting: int = 16
    upload_seconds: float = 30.0


class Uploaded(StoredImage):
    """A picture that came over the network."""

    def __init__(self, content: bytes) -> None:
        self.content = content

    @property
    def size(self) -> int:
        return len(self.content)

    def read(self) -> bytes:
        return self.content

    def __str__(self) -> str:
        return "sent"


class Line:
    """Lets one piece of work run at a time, and at most `places` requests be there at once."""

    def __init__(self, places: int) -> None:
        self._free = places
        self._turn = asyncio.Lock()

    @asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        """A place in the line; ServeError where there is none."""
        if self._free == 0:
            message = "too many pictures are waiting; try again in a second"
            raise ServeError(503, "busy", message, {"Retry-After": "1"})
        self._free -= 1
        try:
            yield
        finally:
            self._free += 1

    async def work(self, function: Callable[..., T], *arguments: Any) -> T:
        """`function(*arguments)` in a thread, when it is this request's turn."""
        async with self._turn:
            return await run_in_threadpool(function, *arguments)


def make_app(
    predictor: Predictor,
    *,
    explainer: Maps | None = None,
    limits: Limits | None = None,
    hosts: frozenset[str] | None = LOOPBACK,
) -> FastAPI:
    """The application around `predictor`. `explainer`: what gives maps, for /api/map and the page.

    `hosts`: the names it answers to, None for any. On loopback this keeps web pages of strangers from
    reaching it under a name of their own.
    """
    limits = limits or Limits()
    line = Line(limits.waiting)
    app = FastAPI(
        title="Coterie",
        version=version("coterie"),
        description="Labels of photographs, by one multi-label classifier. Errors have the shape Failure.",
        docs_url=None,
        redoc_url=None,
    )
    app.add_exception_handler(ServeError, on_serve_error)
    app.add_exception_handler(HTTPException, on_http_error)
    app.add_exception_handler(RequestValidationError, on_bad_parameter)
    app.add_exception_handler(Exception, on_own_fault)
    about = _describe(predictor, limits, maps=explainer is not None)

    @app.middleware("http")
    async def guard(request: Request, answer: Callable[[Request], Awaitable[Response]]) -> Response:
        if hosts is not None and request.url.hostname not in hosts:
            response: Response = failure(421, "wrong_host", "this server does not answer to that name")
        elif request.method == "POST" and request.headers.get("sec-fetch-site") in STRANGERS:
            response = failure(403, "wrong_page", "only the server's own page and programs may ask")
        else:
            response = await answer(request)
        response.headers.update(HEADERS)
        return response

    _add_page(app)

    @app.get("/api/health")
    async def health() -> Health:
        """Whether the server answers."""
        return Health(status="ok")

    @app.get("/api/model")
    async def model() -> ModelDescription:
        """The classes with their thresholds, and the preprocessing."""
        return about

    @app.post("/api/predict", openapi_extra=_TAKES_A_PICTURE, responses=documented(*_REFUSALS))
    async def predict(
        request: Request,
        top: Annotated[int | None, Query(ge=1, description="only the best so many classes")] = None,
    ) -> Prediction:
        """The score of every class for one picture: its bytes are the body."""
        async with line.place():
            body = await _read_body(request, limits)
            return await line.work(_predict, predictor, body, limits, top)

    if explainer is None:
        return app

    @app.post(
        "/api/map",
        openapi_extra=_TAKES_A_PICTURE,
        responses={200: {"content": {"image/png": {}}}, **documented(404, *_REFUSALS)},
        response_class=Response,
    )
    async def map_of_class(
        request: Request, label: Annotated[str, Query(description="the class to look for")]
    ) -> Response:
        """Where the model sees a class, as a PNG with transparency to lay over the picture."""
        if label not in predictor.class_names:
            hint = did_you_mean(label, predictor.class_names)
            raise ServeError(404, "no_such_class", f"there is no class '{label}'{hint}")
        async with line.place():
            body = await _read_body(request, limits)
            content = await line.work(_map, explainer, body, limits, label)
        return Response(content, media_type="image/png")

    return app


_REFUSALS = (400, 403, 408, 413, 415, 421, 422, 503)
_TAKES_A_PICTURE = {
    "requestBody": {
        "required": True,
        "description": f"The bytes of a picture: {', '.join(FORMATS)}",
        "content": {"image/*": {"schema": {"type": "string", "format": "binary"}}},
    }
}


def _add_page(app: FastAPI) -> None:
    """The three files of the page, by name: nothing else of the disk can be asked for."""
    for path, (name, kind) in PAGE_FILES.items():
        content = (files("coterie.serve") / "page" / name).read_bytes()
        app.add_api_route(path, _fixed(content, kind), include_in_schema=False, response_model=None)


def _fixed(content: bytes, kind: str) -> Callable[[], Awaitable[Response]]:
    async def answer() -> Response:
        return Response(content, media_type=kind)

    return answer


def _describe(predictor: Predictor, limits: Limits, maps: bool) -> ModelDescription:
    checkpoint = predictor.checkpoint
    thresholds = zip(checkpoint.class_names, predictor.thresholds, strict=True)
    return ModelDescription(
        name=checkpoint.name,
        classes=[ClassThreshold(label=label, threshold=threshold) for label, threshold in thresholds],
        temperature=checkpoint.temperature,
        image_size=checkpoint.preprocessing.image_size,
        mean=checkpoint.preprocessing.mean,
        std=checkpoint.preprocessing.std,
        weights_sha256=checkpoint.weights_sha256,
        coterie_version=version("coterie"),
        maps=maps,
        max_bytes=limits.max_bytes,
        max_pixels=limits.max_pixels,
    )


async def _read_body(request: Request, limits: Limits) -> bytes:
    """The body, at most `max_bytes` of it in memory; ServeError where it is too large, or no picture."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if not kind.startswith("image/") and kind not in BODY_TYPES:
        raise ServeError(415, "unsupported_type", f"a body of type {kind} is not taken; {SEND}")
    too_large = ServeError(
        413, "too_large", f"the picture has more than {limits.max_bytes:,} bytes; make it smaller"
    )
    announced = request.headers.get("content-length", "0")
    if announced.isdecimal() and int(announced) > limits.max_bytes:
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(limits.upload_seconds):
            async for part in request.stream():
                body += part
                if len(body) > limits.max_bytes:
                    raise too_large
    except TimeoutError:
        message = f"the picture took longer than {limits.upload_seconds:g} seconds to arrive"
        raise ServeError(408, "too_slow", message) from None
    if not body:
        raise ServeError(400, "no_picture", f"the body is empty; {SEND}")
    return bytes(body)


def _open(body: bytes, limits: Limits) -> Image.Image:
    try:
        return open_image(Uploaded(body), formats=FORMATS, max_pixels=limits.max_pixels)
    except UnknownFormat:
        message = f"the body is not a picture of a known format; those are {', '.join(FORMATS)}"
        raise ServeError(415, "unsupported_type", message) from None
    except UnreadableImage as error:
        message = f"the picture cannot be read: {error.reason}"
        raise ServeError(400, "unreadable_picture", message) from None


def _predict(predictor: Predictor, body: bytes, limits: Limits, top: int | None) -> Prediction:
    picture = _open(body, limits)
    (prediction,) = predictor.predict([picture])
    thresholds = dict(zip(predictor.class_names, predictor.thresholds, strict=True))
    present = set(prediction.labels)
    return Prediction(
        width=picture.width,
        height=picture.height,
        predictions=[
            LabelScore(
                label=label,
                score=prediction.scores[label],
                threshold=thresholds[label],
                present=label in present,
            )
            for label in prediction.ranked()[:top]
        ],
    )


def _map(explainer: Maps, body: bytes, limits: Limits, label: str) -> bytes:
    picture = _open(body, limits)
    return heat_png(explainer(picture, [label], shown_size(picture.size))[label])
