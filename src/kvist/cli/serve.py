"""`kvist serve`: OpenAI's interface over a model, and a page on which one can watch its cache."""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kvist.cli import flags
from kvist.cli.terminal import note
from kvist.errors import UsageError
from kvist.server.settings import ServerSettings

if TYPE_CHECKING:
    from kvist.llm import LLM

SERVER, LIMITS = "Server", "Limits"
STEP_TOKENS = 256
"""Tokens of a step: half of what a library's are by default, since who comes or leaves waits for the step that runs."""


def _server(flag: str, help_: str, panel: str = SERVER) -> typer.models.OptionInfo:
    option: typer.models.OptionInfo = typer.Option(flag, help=help_, rich_help_panel=panel)
    return option


def serve(
    model: flags.Model,
    host: Annotated[str, _server("--host", "Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, _server("--port", "Port to listen on; 0 takes a free one.")] = 8000,
    api_key: Annotated[
        list[str] | None, _server("--api-key", "Who may ask: give it once for each key; all others get 401.")
    ] = None,
    api_key_file: Annotated[Path | None, _server("--api-key-file", "A file of keys, one a line.")] = None,
    served_model_name: Annotated[
        str | None, _server("--served-model-name", "What clients call the model; as given here by default.")
    ] = None,
    allowed_origins: Annotated[
        list[str] | None, _server("--allowed-origin", "A web page elsewhere that may ask (CORS).")
    ] = None,
    chat_template: Annotated[
        Path | None, _server("--chat-template", "A file with the template to use instead of the model's own.")
    ] = None,
    log_level: Annotated[str, _server("--log-level", "debug, info, warning or error.")] = "info",
    max_queue: Annotated[int, _server("--max-queue", "Requests that wait or run; more get 429.", LIMITS)] = 256,
    max_n: Annotated[int, _server("--max-n", "Answers to one prompt.", LIMITS)] = 16,
    max_beam_width: Annotated[int, _server("--max-beam-width", "Beams of one prompt.", LIMITS)] = 16,
    max_stops: Annotated[int, _server("--max-stops", "Stop strings of a request.", LIMITS)] = 4,
    max_prompts: Annotated[int, _server("--max-prompts", "Prompts of one completions request.", LIMITS)] = 64,
    max_sessions: Annotated[int, _server("--max-sessions", "Sessions of one key; more get 429.", LIMITS)] = 256,
    max_body_bytes: Annotated[str, _server("--max-body-bytes", "Size of a request: 8MiB.", LIMITS)] = "8MiB",
    request_timeout: Annotated[float, _server("--request-timeout", "Seconds that an answer may take.", LIMITS)] = 600.0,
    shutdown_timeout: Annotated[
        float, _server("--shutdown-timeout", "Seconds that answers get to end before the server does.", LIMITS)
    ] = 10.0,
    max_model_len: flags.MaxModelLen = None,
    kv_cache_dtype: flags.KvCacheDtype = None,
    kv_cache_skip_layers: flags.KvCacheSkipLayers = None,
    policy: flags.Policy = None,
    page_size: flags.PageSize = None,
    kv_cache_memory_bytes: flags.KvCacheMemory = None,
    max_num_seqs: flags.MaxNumSeqs = None,
    max_num_batched_tokens: flags.MaxBatchedTokens = STEP_TOKENS,
    enable_prefix_caching: flags.PrefixCaching = None,
    max_pinned_share: flags.MaxPinnedShare = None,
    weights: flags.Weights = None,
    speculative_config: flags.Speculative = None,
    seed: flags.Seed = None,
    threads: flags.Threads = None,
) -> None:
    """Serve a model: OpenAI's routes at /v1, the live page at /, metrics at /metrics."""
    options = flags.engine_options(
        max_model_len=max_model_len, kv_cache_dtype=kv_cache_dtype, kv_cache_skip_layers=kv_cache_skip_layers,
        policy=policy, page_size=page_size, kv_cache_memory_bytes=kv_cache_memory_bytes, max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_batched_tokens, enable_prefix_caching=enable_prefix_caching,
        max_pinned_share=max_pinned_share, weights=weights, speculative_config=speculative_config, seed=seed,
        threads=threads,
    )  # fmt: skip
    keys = read_keys(api_key or [], api_key_file)
    settings = ServerSettings(
        served_model_name or model, keys, max_n=max_n, max_beam_width=max_beam_width, max_stops=max_stops,
        max_prompts=max_prompts, max_sessions=max_sessions, max_queue=max_queue, request_timeout=request_timeout,
        max_body_bytes=flags.memory_bytes(max_body_bytes, "max_body_bytes"), shutdown_timeout=shutdown_timeout,
        cors_origins=tuple(allowed_origins or ()),
    )  # fmt: skip
    _run(model, options, chat_template, settings, host, port, log_level)


def _run(
    model: str, options: dict[str, Any], chat_template: Path | None, settings: ServerSettings, host: str, port: int,
    log_level: str,
) -> None:  # fmt: skip
    """Check what can be checked, listen, and serve."""
    from kvist.config import EngineConfig
    from kvist.models.hub import resolve
    from kvist.server.logs import LEVELS, start_logging

    EngineConfig.from_options(options)  # what is wrong with flags and names is said before anything listens
    resolve(model)
    template = None if chat_template is None else chat_template.read_text("utf-8")
    if log_level not in LEVELS:
        raise UsageError(f"--log-level {log_level[:40]!r}: give one of {', '.join(LEVELS)}")
    from kvist.server.serving import listen, serve_on

    sock = listen(host, port)
    address = f"http://{f'[{host}]' if ':' in host else host}:{sock.getsockname()[1]}"
    if not settings.api_keys and not _is_loopback(host):
        note(f"anybody who reaches {address} can use this server: give --api-key, or listen on 127.0.0.1")
    start_logging(log_level)

    def load() -> LLM:
        from kvist.llm import LLM

        llm = LLM(model, **options)
        if template is not None:
            llm.tokenizer.chat_template = template
        return llm

    serve_on(sock, load, settings, lambda llm: note(f"kvist serves {settings.name} at {address}"))


def read_keys(given: list[str], file: Path | None) -> tuple[str, ...]:
    """All keys, each at least something, and none of characters that a header cannot carry."""
    lines = [] if file is None else [line.strip() for line in file.read_text("utf-8").splitlines()]
    keys = [*given, *(line for line in lines if line)]
    if (given or file is not None) and not keys:
        raise UsageError("no API key is given, though keys are asked for: put one into the file")
    for key in keys:
        if not key or not key.isascii() or not key.isprintable() or " " in key or ";" in key:
            raise UsageError("an API key is made of printable ASCII without spaces: give another")
    return tuple(dict.fromkeys(keys))


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
