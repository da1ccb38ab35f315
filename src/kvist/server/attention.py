"""`/live/attention`: what the heads of the running model look at in a text, and what they cost."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Annotated, Any

from fastapi import APIRouter, Body
from pydantic import Field
from starlette.requests import Request

from kvist.cache.codec.choice import float_type
from kvist.config import EngineConfig
from kvist.layers import page_sharing
from kvist.llm import LLM
from kvist.models.config import ModelConfig
from kvist.server.failures import ApiError
from kvist.server.looking import MOST_TOKENS, Looking, Looks
from kvist.server.schema import Asked, Message, Name
from kvist.server.service import Service
from kvist.server.sides import token_text
from kvist.server.words import words

DIGITS = 7


class AttentionRequest(Asked):
    """A layer and a query head, and one of text, messages and a session."""

    text: str | None = None
    messages: list[Message] | None = None
    session: Name | None = None
    layer: Annotated[int, Field(ge=0)] = 0
    head: Annotated[int, Field(ge=0)] = 0


def routes(service: Service) -> APIRouter:
    """The routes. One text is looked at at a time; others wait for their turn."""
    router, turn = APIRouter(include_in_schema=False), asyncio.Lock()

    @router.get("/live/attention")
    async def heads() -> dict[str, Any]:
        llm = service.llm
        return {**heads_json(llm), "bytes_per_token": variants(llm), "most_tokens": MOST_TOKENS}

    @router.post("/live/attention")
    async def attention(request: Request, asked: Annotated[AttentionRequest, Body()]) -> dict[str, Any]:
        llm = service.llm
        most = llm.model.config.num_heads
        if asked.head >= most:
            raise ApiError(400, f"head {asked.head}: this model has 0 to {most - 1}", "head")
        ids = await words(service, request, asked.text, asked.messages, asked.session)
        async with turn:
            looks = await looked_at(service, ids[:MOST_TOKENS], asked.layer)
        return {
            **heads_json(llm),
            **looks_json(looks, asked.head),
            "layer": asked.layer, "head": asked.head, "kv_head": asked.head // llm.model.config.group,
            "tokens": [token_text(llm, token) for token in ids[:MOST_TOKENS]],
            "tokens_left_out": max(0, len(ids) - MOST_TOKENS),
        }  # fmt: skip

    return router


async def looked_at(service: Service, ids: list[int], layer: int) -> Looks:
    """Run a text up to a layer, some rows at a time between the steps of others."""
    made: list[Looking] = []
    call = service.worker.call

    def close(llm: LLM) -> None:
        for looking in made:
            looking.close()

    try:
        await call(lambda llm: made.append(Looking(llm, ids, layer)))
        while not made[0].done:
            await call(lambda llm: made[0].advance())
        return await call(lambda llm: made[0].looks())
    finally:  # in the engine's thread, after what may still run there
        await asyncio.shield(call(close))


def looks_json(looks: Looks, head: int) -> dict[str, Any]:
    """The weights of a head, row by row without what lies in the future."""
    weights, op = looks.weights(head), looks.op
    return {
        "weights": [[round(float(one), DIGITS) for one in row[: i + 1]] for i, row in enumerate(weights)],
        "row_sums": [round(float(total), DIGITS) for total in weights.sum(1)],
        "window": op.window, "softcap": op.softcap, "sink": op.sinks is not None,
    }  # fmt: skip


def heads_json(llm: LLM) -> dict[str, Any]:
    """How many layers and heads there are."""
    config = llm.model.config
    return {
        "layers": config.num_layers,
        "heads": {"query": config.num_heads, "kv": config.num_kv_heads, "size": config.head_dim},
        "kind": config.attention,
    }


def variants(llm: LLM) -> list[dict[str, Any]]:
    """What the model would be with K/V heads as each kind has, its own kind among them.

    bytes: of a token, all layers together. reads: which K/V head each query head reads.
    """
    own, found = llm.model.config, []
    grouped = own.num_kv_heads if own.attention == "GQA" else _grouped(own.num_heads)
    for kind, kv_heads in (("MHA", own.num_heads), ("GQA", grouped), ("MQA", 1)):
        if kv_heads is not None:
            config = replace(own, num_kv_heads=kv_heads)
            size = bytes_per_token(config, llm.config, llm.model.float_type)
            found.append(
                {"kind": kind, "bytes": size, "own": kv_heads == own.num_kv_heads, "reads": _reads(config)}
            )  # fmt: skip
    return found


def bytes_per_token(model: ModelConfig, config: EngineConfig, floats: str) -> int:
    """Of one position in all layers, packed where layers are (see `cache.layout`)."""
    groups = page_sharing(model, config, float_type(config.kv_cache_dtype, floats)).groups
    return sum(group.layout.bytes_per_token for group in groups if not group.exact)


def _reads(config: ModelConfig) -> list[int]:
    """Which K/V head each query head reads."""
    return [head // config.group for head in range(config.num_heads)]


def _grouped(heads: int) -> int | None:
    """K/V heads of a GQA between the two others: groups of four heads, or the nearest that divides them."""
    between = [kv for kv in range(2, heads) if heads % kv == 0]
    return min(between, key=lambda kv: abs(heads // kv - 4), default=None)
