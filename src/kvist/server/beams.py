"""A chat answered by beam search: all its answers at once, the best first."""

from __future__ import annotations

import time
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse

from kvist.outputs import BeamSearchOutput
from kvist.server.answering import Answering
from kvist.server.mailbox import Ended
from kvist.server.reports import extension, usage
from kvist.server.service import Service
from kvist.server.stream import unless_gone
from kvist.server.worker import Order


async def beam_chat(service: Service, request: Request, order: Order) -> JSONResponse:
    """The answers of a beam search as choices of a chat completion."""
    answering = await Answering.begin(service.worker, [order], service.settings, eager=False)

    async def whole() -> BeamSearchOutput:
        try:
            found = None
            async for items in answering.items():
                found = next((item.output for _, item in items if isinstance(item, Ended)), found)
        finally:
            answering.close()
        assert isinstance(found, BeamSearchOutput)
        return found

    output: BeamSearchOutput = await unless_gone(request.receive, whole())
    choices: list[dict[str, Any]] = [
        {
            "index": index,
            "message": {"role": "assistant", "content": answer.answer_text},
            "logprobs": None,
            "finish_reason": answer.finish_reason,
            "cumulative_logprob": answer.cum_logprob,
        }
        for index, answer in enumerate(output.sequences)
    ]
    return JSONResponse({
        "id": order.request_id, "object": "chat.completion", "created": int(time.time()),
        "model": service.settings.name, "choices": choices, "usage": usage([output.metrics]),
        "kvist": extension([output.metrics]),
    })  # fmt: skip
