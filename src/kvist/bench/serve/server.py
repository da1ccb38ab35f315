"""What there is to know of a server before it is measured: who it is, which model, how long its tokens are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from kvist.bench.serve.answer import Answer, Failure, parsed, said
from kvist.bench.serve.http import Client, Reply, TransportError
from kvist.bench.serve.load import ask, encoded
from kvist.bench.serve.work import Plan, Text
from kvist.errors import ServerError, UsageError, unknown_name

SAMPLES = 32, 160  # words of two requests, whose difference tells how many tokens a word has
USUAL = 1.3  # tokens of an English word, where a server counts none


@dataclass(frozen=True, slots=True)
class Server:
    """A server that answers. version: what `/version` says, if there is one."""

    model: str
    version: dict[str, Any] | None
    tokens_per_word: float


async def meet(client: Client, url: str, model: str | None, plan: Plan, nonce: str) -> Server:
    """Find the model, and ask two short questions, which also wake a server up.

    Raises ServerError or UsageError, with what to do, where no measurement would come of it.
    """
    listed = await _get(client, url, "/v1/models")
    names = _models(listed)
    model = _choice(names, url) if model is None else model
    version = await _get(client, url, "/version")
    measured = await _tokens_per_word(client, url, model, names, plan, nonce)
    return Server(model, (parsed(version.body) or None) if version.status == 200 else None, measured)


async def _tokens_per_word(client: Client, url: str, model: str, names: list[str], plan: Plan, nonce: str) -> float:
    counts = []
    for i, words in enumerate(SAMPLES):
        text = f"{nonce}-{i} {Text(plan.seed, USUAL).words(words)}"
        found = await ask(client, encoded(model, plan, [{"role": "user", "content": text}], 8))
        if isinstance(found, Answer) and found.prompt_tokens is not None:
            counts.append(found.prompt_tokens)
        elif isinstance(found, Failure) and found.kind != "no text":
            raise _refused(found, url, model, names)
    more = counts[1] - counts[0] if len(counts) == len(SAMPLES) else 0
    return more / (SAMPLES[1] - SAMPLES[0]) if more > 0 else USUAL


async def _get(client: Client, url: str, path: str) -> Reply:
    try:
        reply = await client.get(path)
    except TransportError as error:
        raise _refused(Failure(error.kind, error.detail), url, "", []) from error
    if reply.status in (401, 403):
        raise _refused(Failure(f"http {reply.status}", said(reply.body)), url, "", [])
    return reply


def _models(listed: Reply) -> list[str]:
    """The names in a list of models; none where there is no such list."""
    data = parsed(listed.body).get("data") if listed.status == 200 else None
    models = data if isinstance(data, list) else []
    return [str(model["id"]) for model in models if isinstance(model, dict) and "id" in model]


def _choice(names: list[str], url: str) -> str:
    if len(names) == 1:
        return names[0]
    if not names:
        raise UsageError(f"the server at {url} lists no models: give --model")
    raise UsageError(f"the server at {url} has {len(names)} models: give --model, one of {', '.join(names)}")


def _refused(found: Failure, url: str, model: str, names: list[str]) -> Exception:
    """The error for a server that does not answer."""
    if found.kind == "unreachable":
        return ServerError(f"no server answers at {url} ({found.detail}): start it, or give another --url")
    if found.kind in ("http 401", "http 403"):
        return ServerError(f"the server at {url} wants another key: give it with --api-key")
    if found.kind == "http 404" and names and model not in names:
        return unknown_name("model", model, names)
    if found.kind == "no event stream":
        return ServerError(
            f"the server at {url} does not stream ({found.detail}): is this an OpenAI-compatible server?"
        )
    return ServerError(f"the server at {url} did not answer a short question ({found.kind}): {found.detail}")
