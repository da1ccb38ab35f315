"""Every error as OpenAI's clients expect it: `{"error": {"message", "type", "param", "code"}}` with a status."""

from __future__ import annotations

from typing import Any

from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from kvist.errors import CapacityError, KvistError, RequestError, UsageError
from kvist.server.worker import UnavailableError

TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    404: "not_found_error",
    405: "invalid_request_error",
    408: "timeout_error",
    409: "conflict_error",
    413: "invalid_request_error",
    415: "invalid_request_error",
    429: "rate_limit_error",
    500: "internal_error",
    503: "unavailable_error",
}
RETRY_SECONDS = 1  # what 429 and 503 ask a client to wait


class ApiError(HTTPException):
    """A request that is refused: status, what is wrong and what to do, the field, a code for programs.

    An HTTPException, since the framework takes any other that comes while it reads a body for a broken body.
    """

    def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(status, message)
        self.status, self.message, self.param, self.code = status, message, param, code


def body(status: int, message: str, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """The JSON of an error."""
    kind = TYPES.get(status, "invalid_request_error" if status < 500 else "internal_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def response(error: ApiError) -> JSONResponse:
    """An error as a response."""
    headers = {"Retry-After": str(RETRY_SECONDS)} if error.status in (429, 503) else {}
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse(body(error.status, error.message, error.param, error.code), error.status, headers)


def told(error: BaseException) -> ApiError:
    """Any error as what a client is told. Of a defect it is told the kind, and finds more in the log."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, UnavailableError):
        return ApiError(503, str(error), code="unavailable")
    if isinstance(error, RequestError):
        return ApiError(400, str(error), code="context_length_exceeded" if "max_model_len" in str(error) else None)
    if isinstance(error, UsageError):
        return ApiError(400, str(error))
    if isinstance(error, CapacityError):
        return ApiError(503, str(error), code="out_of_memory")
    if isinstance(error, HTTPException):
        return ApiError(error.status_code, str(error.detail))
    if isinstance(error, KvistError):
        return ApiError(500, str(error))
    return ApiError(500, f"internal error ({type(error).__name__}): the server's log says more")
