"""What the endpoint answers: the shapes of its JSON, and errors in one shape."""

from __future__ import annotations

from typing import Any

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse


class LabelScore(BaseModel):
    """What the model says of one class."""

    label: str
    score: float = Field(ge=0, le=1)
    threshold: float = Field(ge=0, le=1)
    present: bool = Field(description="whether the score is above the threshold")


class Prediction(BaseModel):
    """What the model says of one picture, the best score first."""

    width: int = Field(description="of the picture, upright, in pixels")
    height: int
    predictions: list[LabelScore]


class ClassThreshold(BaseModel):
    label: str
    threshold: float


class ModelDescription(BaseModel):
    """What the model knows, and how pictures reach it."""

    name: str
    classes: list[ClassThreshold]
    temperature: float
    image_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    weights_sha256: str
    coterie_version: str
    maps: bool = Field(description="whether /api/map shows where the model looks")
    max_bytes: int
    max_pixels: int


class Health(BaseModel):
    status: str


class Problem(BaseModel):
    code: str = Field(description="a word for programs, such as too_large")
    message: str = Field(description="a sentence for people")


class Failure(BaseModel):
    """Every error has this shape."""

    error: Problem


class ServeError(Exception):
    """A request that is not answered, with its status."""

    def __init__(self, status: int, code: str, message: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.headers = headers


# What every answer carries: it is shown by no other page, and brings in nothing from elsewhere.
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
# The words of the errors that the framework raises.
CODES = {404: "not_found", 405: "method_not_allowed", 422: "bad_parameter"}


def failure(status: int, code: str, message: str, headers: dict[str, str] | None = None) -> JSONResponse:
    """The answer to a request that cannot be served."""
    content = Failure(error=Problem(code=code, message=message))
    return JSONResponse(content.model_dump(), status, HEADERS | (headers or {}))


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The errors of an endpoint, for its OpenAPI description."""
    return {status: {"model": Failure} for status in statuses}


async def on_serve_error(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, ServeError)
    return failure(error.status, error.code, error.message, error.headers)


async def on_http_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    code = CODES.get(error.status_code, "bad_request")
    message = f"{request.method} {request.url.path}: {error.detail}"
    return failure(error.status_code, code, message, dict(error.headers or {}))


async def on_bad_parameter(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    problem = error.errors()[0]
    name = str(problem["loc"][-1])
    return failure(422, CODES[422], f"{name}: {problem['msg']}")


async def on_own_fault(_request: Request, _error: Exception) -> JSONResponse:
    return failure(500, "internal", "the server failed; its log says why")
