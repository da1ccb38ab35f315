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
# scripts, styles and pictures come from here only; what is drawn in the page may be saved as a picture
POLICY = (
    "default-src 'self'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; object-src 'none'; "
    "base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)


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
    headers = {"Cache-Control": "no-cache", "Content-Security-Policy": POLICY, "X-Content-Type-Options": "nosniff"}
    return FileResponse(path, media_type=TYPES[path.suffix], headers=headers)
