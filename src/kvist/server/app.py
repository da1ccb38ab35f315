"""The application: which path is answered by what."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

from fastapi import Body, FastAPI
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.types import ASGIApp

from kvist.errors import KvistError
from kvist.server import (
    attention,
    cache_routes,
    compare,
    live_content,
    live_feed,
    live_numbers,
    live_routes,
    session_routes,
    text_routes,
)
from kvist.server.chat import chat
from kvist.server.completions import completions
from kvist.server.failures import ApiError, response, told
from kvist.server.front import Front
from kvist.server.logs import log
from kvist.server.metrics import EngineNumbers
from kvist.server.responses import responses
from kvist.server.schema import ChatRequest, CompletionRequest, ResponsesRequest
from kvist.server.service import Service
from kvist.server.stream import ClientGoneError
from kvist.version import __version__


class ErrorBody(BaseModel):
    """What went wrong, for people and for programs."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorAnswer(BaseModel):
    """Every error has this shape."""

    error: ErrorBody


STATUSES = (400, 401, 404, 408, 409, 413, 429, 500, 503)
ERRORS: dict[int | str, dict[str, Any]] = {status: {"model": ErrorAnswer} for status in STATUSES}
ANSWERS: dict[int | str, dict[str, Any]] = {  # of what may be streamed
    200: {
        "description": "The answer; a stream of events where `stream` is true",
        "content": {
            "application/json": {"schema": {"type": "object"}},
            "text/event-stream": {},  # events have no schema in OpenAPI 3.1
        },
    }
}


class _App(FastAPI):
    """FastAPI, which here describes no status 422: 400 is used instead."""

    def openapi(self) -> dict[str, Any]:
        """The description of the interface."""
        described = super().openapi()
        for path in described["paths"].values():
            for operation in path.values():
                operation["responses"].pop("422", None)
        return described


def create_app(service: Service) -> ASGIApp:
    """Everything, behind the door. The engine starts with the application and stops with it."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service.worker.start()
        yield
        service.worker.stop()

    app = _App(
        title="kvist", version=__version__, lifespan=lifespan, responses=ERRORS, docs_url=None, redoc_url=None,
        description="An LLM inference engine built around its KV cache.",
    )  # fmt: skip
    for kind in (ApiError, KvistError, HTTPException, Exception):
        app.add_exception_handler(kind, _failed)
    app.add_exception_handler(RequestValidationError, _invalid)
    _add_openai(app, service)
    _add_health(app, service)
    for module in (
        text_routes, cache_routes, session_routes, live_routes, live_feed, live_content, live_numbers, compare,
        attention,
    ):  # fmt: skip
        app.include_router(module.routes(service))
    front: ASGIApp = Front(app, service.settings)
    if service.settings.cors_origins:
        front = CORSMiddleware(front, service.settings.cors_origins, allow_methods=["*"], allow_headers=["*"])
    return front


def _add_openai(app: FastAPI, service: Service) -> None:
    @app.post("/v1/chat/completions", tags=["OpenAI"], responses=ANSWERS)
    async def chat_completions(request: Request, asked: Annotated[ChatRequest, Body()]) -> Response:
        return await chat(service, request, asked)

    @app.post("/v1/completions", tags=["OpenAI"], responses=ANSWERS)
    async def text_completions(request: Request, asked: Annotated[CompletionRequest, Body()]) -> Response:
        return await completions(service, request, asked)

    @app.post("/v1/responses", tags=["OpenAI"], responses=ANSWERS)
    async def model_responses(request: Request, asked: Annotated[ResponsesRequest, Body()]) -> Response:
        return await responses(service, request, asked)

    @app.get("/v1/models", tags=["OpenAI"])
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [_model(service)]}

    @app.get("/v1/models/{name:path}", tags=["OpenAI"])
    async def model(name: str) -> dict[str, Any]:
        if name != service.settings.name:
            raise ApiError(404, f"the model {name[:80]!r} is not here", "model", "model_not_found")
        return _model(service)


def _add_health(app: FastAPI, service: Service) -> None:
    @app.get("/health", tags=["server"], response_class=Response)
    async def health() -> Response:
        """200 when requests are taken; 503 while the model loads, while the server stops, and when it broke down."""
        return Response(status_code=200 if service.worker.ready else 503)

    @app.get("/version", tags=["server"])
    async def version() -> dict[str, str]:
        return {"version": __version__}

    @app.get("/metrics", tags=["server"], response_class=PlainTextResponse)
    async def metrics() -> Response:
        numbers = await service.worker.call(EngineNumbers.of) if service.worker.ready else None
        text = service.metrics.text(numbers)
        return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")


def _model(service: Service) -> dict[str, Any]:
    limits = service.llm.engine.limits
    return {
        "id": service.settings.name, "object": "model", "created": service.started, "owned_by": "kvist",
        "root": service.settings.name, "max_model_len": limits.max_model_len,
    }  # fmt: skip


async def _failed(request: Request, error: Exception) -> Response:
    if isinstance(error, ClientGoneError):
        return Response(status_code=499)  # nobody reads it
    failure = told(error)
    if failure.status == 500:
        log("request failed", level="error", path=request.url.path[:256], exc_info=error)
    return response(failure)


async def _invalid(request: Request, error: Exception) -> JSONResponse:
    """A body that is no JSON, or has a field of the wrong type."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"][1:])
    message = f"{place}: {first['msg']}" if place else str(first["msg"])
    return response(ApiError(400, f"{message}: correct the request", place.split(".")[0] or None, "invalid_value"))
