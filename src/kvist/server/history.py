"""The requests that ended last: how long they were, what they found, and the pages they held. For the live page.

Written in the engine's thread, a record for each request; nothing of an answer's text is kept, and of a prompt only
the tokens up to where it stopped being found in the cache.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

from kvist.cache.report import FirstDifference, ReuseReport
from kvist.engine.checks import salt_bytes
from kvist.engine.engine import Engine
from kvist.engine.params import RequestMetrics
from kvist.outputs import BeamSearchOutput, RequestOutput
from kvist.server.mailbox import Ended

if TYPE_CHECKING:
    from kvist.server.worker import Order

KEPT = 256


@dataclass(frozen=True, slots=True)
class Record:
    """A request that ended.

    most: tokens that each of its `branches` might have become, prompt included. pages: of the group that sees most,
    those it held when it was longest, shared ones counted once; found: those of them that were cached already. held,
    own, used: bytes in all groups: of its pages, of those that were not cached already, and what tokens fill of these.
    broke: its prompt up to the end of the page that was not found.
    """

    request: str
    salt: bytes
    prompt: int
    generated: int
    branches: int
    most: int
    pages: int
    found: int
    held: int
    own: int
    used: int
    finish: str
    time_to_first_token: float | None
    seconds: float
    reuse: ReuseReport
    broke: tuple[int, ...]

    def as_json(self, mine: bool) -> dict[str, Any]:
        """What a viewer is told: of others' requests no name and no text."""
        difference: FirstDifference | None = self.reuse.first_difference
        return {
            "request": self.request if mine else None, "mine": mine, "prompt": self.prompt,
            "generated": self.generated, "branches": self.branches, "most": self.most, "pages": self.pages,
            "found": self.found, "held": self.held, "own": self.own, "used": self.used, "finish": self.finish,
            "time_to_first_token": self.time_to_first_token, "seconds": self.seconds,
            "cached": sum(self.reuse.cached.values()), "computed": self.reuse.computed,
            "reason": self.reuse.reason if mine else None,
            "difference": asdict(difference) if mine and difference is not None else None,
        }  # fmt: skip


class RequestHistory:
    """The last `KEPT` of one server. `count`: all that were noted."""

    def __init__(self) -> None:
        self.count = 0
        self._records: deque[Record] = deque(maxlen=KEPT)

    def since(self, count: int) -> list[Record]:
        """Those noted after so many, as far as they are kept; oldest first."""
        fresh = min(self.count - count, len(self._records))
        return list(islice(self._records, len(self._records) - fresh, None))

    def note(self, engine: Engine, order: Order, metrics: RequestMetrics, ended: Ended) -> None:
        """Take note of a request that ended (engine's thread); of one that never ran there is nothing to note."""
        if metrics.reuse is None:
            return
        prompt, params, groups = order.prompt_ids, order.params, engine.manager.groups
        longest, size = engine.limits.max_model_len, groups[0].layout.page_size
        answers, reasons = _answers(ended, metrics, len(prompt))
        pages, slots = pages_held(len(prompt), answers, size)
        shared = sum(metrics.reuse.cached.values()) // size
        each = [min(pages, (group.span or pages) * len(answers)) for group in groups]
        own = [min(pages - shared, most) for most in each]
        spare = pages * size - slots  # in the last pages, which all groups have
        found = metrics.reuse.first_difference
        self._records.append(
            Record(
                request=order.request_id,
                salt=salt_bytes(order.cache_salt),
                prompt=len(prompt),
                generated=metrics.generated_tokens,
                branches=len(answers),
                most=longest if params.max_tokens is None else min(longest, len(prompt) + params.max_tokens),
                pages=pages,
                found=shared,
                held=sum(group.layout.page_bytes * most for group, most in zip(groups, each, strict=True)),
                own=sum(group.layout.page_bytes * most for group, most in zip(groups, own, strict=True)),
                used=sum(
                    group.layout.bytes_per_token * max(most * size - spare, 0)
                    for group, most in zip(groups, own, strict=True)
                ),
                finish=reasons,
                time_to_first_token=metrics.time_to_first_token,
                seconds=(metrics.finished_time or time.monotonic()) - metrics.arrival_time,
                reuse=metrics.reuse,
                broke=() if found is None else tuple(prompt[: found.position // size * size + size]),
            )
        )
        self.count += 1


def pages_held(prompt: int, answers: Sequence[Sequence[int]], size: int) -> tuple[int, int]:
    """Pages, and tokens in them, of a prompt of so many tokens with these answers, whose last tokens were never run.

    What two answers have in common they hold once: the prompt's full pages, and full pages with the same tokens. An
    answer's own last page is its own.
    """
    first, rest = divmod(prompt, size)
    known: dict[tuple[int, tuple[int, ...]], int] = {}
    slots = first * size
    pages = first
    for answer in answers:
        tokens = (*(-1 for _ in range(rest)), *answer[:-1])
        parent = 0
        for start in range(0, len(tokens), size):
            page = tokens[start : start + size]
            if len(page) < size or (parent, page) not in known:
                pages += 1
                slots += len(page)
            parent = known.setdefault((parent, page), len(known) + 1)
    return pages, slots


def _answers(ended: Ended, metrics: RequestMetrics, prompt: int) -> tuple[list[Sequence[int]], str]:
    """The tokens of each answer, and why they ended. What was stopped has no output, only a count of its tokens."""
    if isinstance(ended.output, RequestOutput):
        answers: list[Sequence[int]] = [answer.token_ids for answer in ended.output.outputs]
        reasons = [answer.finish_reason or "abort" for answer in ended.output.outputs]
    elif isinstance(ended.output, BeamSearchOutput):
        answers = [answer.tokens[prompt:] for answer in ended.output.sequences]
        reasons = [answer.finish_reason or "abort" for answer in ended.output.sequences]
    else:
        answers, reasons = [range(metrics.generated_tokens)], ["abort"]
    return answers, ", ".join(dict.fromkeys(reasons))
