"""`/tokenize` and `/detokenize`, as in vLLM."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter, Body

from kvist.server.failures import ApiError
from kvist.server.schema import DetokenizeRequest, TokenizeRequest
from kvist.server.service import Service


def routes(service: Service) -> APIRouter:
    """The routes."""
    router = APIRouter(tags=["text"])

    @router.post("/tokenize")
    async def tokenize(asked: Annotated[TokenizeRequest, Body()]) -> dict[str, Any]:
        service.check(asked)
        llm = service.llm
        if (asked.prompt is None) == (asked.messages is None):
            raise ApiError(400, "give one of prompt and messages", "prompt")
        if asked.prompt is None:
            if asked.add_special_tokens:
                wrong = "messages get the special tokens that their template writes: leave add_special_tokens out"
                raise ApiError(400, wrong, "add_special_tokens")
            ids = await service.chat_ids(asked.messages or [], asked.tools)
        else:
            if asked.tools:
                raise ApiError(400, "tools are for messages: leave them out", "tools")
            special = asked.add_special_tokens is not False
            ids = await asyncio.to_thread(llm.tokenizer.encode, asked.prompt, special)
        texts = [llm.tokenizer.token_text(token) for token in ids] if asked.return_token_strs else None
        return {
            "count": len(ids), "max_model_len": llm.engine.limits.max_model_len, "tokens": ids, "token_strs": texts,
        }  # fmt: skip

    @router.post("/detokenize")
    async def detokenize(asked: Annotated[DetokenizeRequest, Body()]) -> dict[str, str]:
        service.check(asked)
        llm = service.llm
        size = llm.engine.limits.vocab_size
        bad = next((token for token in asked.tokens if token >= size), None)
        if bad is not None:
            raise ApiError(400, f"token id {bad} is not in this model's vocabulary of {size}", "tokens")
        return {"prompt": await asyncio.to_thread(llm.tokenizer.decode, asked.tokens, False)}

    return router
