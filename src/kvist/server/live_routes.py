"""The live page and what feeds it."""

from __future__ import annotations

from pathlib import Path

from fastapi import APIRouter
from starlette.responses import FileResponse, Response

from kvist.server.failures import ApiError
from kvist.server.service import Service

STATIC = Path(__file__).parent / "static"
TYPES = {
    ".html": "text/html",
    ".js": "text/javascript",
    ".css": "text/css",
    ".svg": "image/svg+xml",
    ".txt": "text/plain",
}


def routes(service: Service) -> APIRouter:
    """The routes."""
    router = APIRouter(include_in_schema=False)
    files = {path.relative_to(STATIC).as_posix(): path for path in STATIC.rglob("*") if path.suffix in TYPES}

    @router.get("/")
    async def page() -> Response:
        return _file(files, "index.html")

    @router.get("/static/{name:path}")
    async def static(name: str) -> Response:
        return _file(files, name)

    return router


def _file(files: dict[str, Path], name: str) -> Response:
    """One of the files that were there at the start: no path is made of what a client says."""
    if name not in files:
        raise ApiError(404, "there is no such file")
    path = files[name]
    return FileResponse(path, media_type=TYPES[path.suffix], headers={"Cache-Control": "no-cache"})
