"""What a server allows: keys and limits, each with a small default that a flag raises."""

from __future__ import annotations

from dataclasses import dataclass

MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """How a server answers; every field but `name` is a flag of `kvist serve`.

    name: the model as clients call it. api_keys: who may ask (none: everybody). max_n: answers to a prompt at most;
    max_beam_width, max_stops: the same of beams and stop strings. max_prompts: prompts of one completions request.
    max_body_bytes: of a request. max_queue: requests that wait or run at once; more get 429. max_sessions: of one
    tenant. request_timeout, shutdown_timeout: seconds that an answer, and the last answers, may take.
    cors_origins: web pages elsewhere that may ask.
    """

    name: str
    api_keys: tuple[str, ...] = ()
    max_n: int = 16
    max_beam_width: int = 16
    max_stops: int = 4
    max_prompts: int = 64
    max_body_bytes: int = 8 * MIB
    max_queue: int = 256
    max_sessions: int = 256
    request_timeout: float = 600.0
    shutdown_timeout: float = 10.0
    cors_origins: tuple[str, ...] = ()
