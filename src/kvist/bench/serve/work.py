"""What is asked of a server: conversations, each one request or several turns.

All texts are drawn from a passage of prose by the seed, but for the nonce they begin with: nobody has seen it, so
nothing of them is cached anywhere, except what they share by intent and what the server's template puts before them.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from itertools import accumulate

from kvist.errors import UsageError, unknown_name

Conversation = tuple[str, ...]
"""What a user says, turn by turn."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What to ask. Tokens are those of the server's own tokenizer, but only about as many; limits are seconds.

    concurrency: conversations open at once. request_rate: instead, their arrivals per second, at random (Poisson).
    prompt_tokens: of what a request brings of its own; the shared prefix comes on top.
    """

    workload: str = "prefix"
    requests: int = 32
    concurrency: int | None = None
    request_rate: float | None = None
    prompt_tokens: int = 256
    output_tokens: int = 64
    prefix_tokens: int = 1024
    prefixes: int = 4
    turns: int = 4
    seed: int = 0
    ignore_eos: bool = True
    goodput_ttft: float | None = None
    goodput_itl: float | None = None

    def __post_init__(self) -> None:
        if self.workload not in WORKLOADS:
            raise unknown_name("workload", self.workload, WORKLOADS)
        if self.request_rate is not None and self.concurrency is not None:
            raise UsageError("--concurrency and --request-rate are two ways to arrive: give one")
        if self.request_rate is not None and self.request_rate <= 0:
            raise UsageError(f"--request-rate is {self.request_rate:g}: give requests per second, above 0")

    @property
    def at_once(self) -> int | None:
        """Conversations open at once; None where they come by a rate."""
        return (self.concurrency or 8) if self.request_rate is None else None

    def arrivals(self, count: int) -> list[float]:
        """Seconds after which each of the conversations begins, if there is room."""
        if self.request_rate is None:
            return [0.0] * count
        draw = random.Random(f"arrivals {self.seed}")
        return list(accumulate(draw.expovariate(self.request_rate) for _ in range(count)))


class Text:
    """Prose without end: clauses of the passage in random order.

    tokens_per_word: of the server's tokenizer.
    """

    def __init__(self, seed: int, tokens_per_word: float) -> None:
        passage = resources.files("kvist.bench").joinpath("passage.txt").read_text(encoding="utf-8")
        self._clauses = [clause.split() for clause in re.split(r"(?<=[,.;:!?])\s+", passage)]
        self._tokens_per_word = tokens_per_word
        self.random = random.Random(f"text {seed}")

    def words(self, count: int) -> str:
        """So many words."""
        found: list[str] = []
        while len(found) < count:
            found += self.random.choice(self._clauses)
        return " ".join(found[:count])

    def tokens(self, count: int) -> str:
        """About so many tokens."""
        return self.words(max(1, round(count / self._tokens_per_word)))


def prefix(plan: Plan, text: Text, nonce: str) -> list[Conversation]:
    """A few long prefixes in turn, each with a question of its own behind it: documents, system prompts, few shots."""
    shared = [f"{nonce}.{i} {text.tokens(plan.prefix_tokens)}" for i in range(plan.prefixes)]
    return [(f"{shared[i % plan.prefixes]}\n\n{i}. {text.tokens(plan.prompt_tokens)}",) for i in range(plan.requests)]


def multi_turn(plan: Plan, text: Text, nonce: str) -> list[Conversation]:
    """Users who go on talking: what was said comes back with every turn. The last user may have fewer turns."""
    said = [text.tokens(plan.prompt_tokens) for _ in range(plan.requests)]
    users = [said[i : i + plan.turns] for i in range(0, plan.requests, plan.turns)]
    return [(f"{nonce}.{i} {first}", *more) for i, (first, *more) in enumerate(users)]


def unshared(plan: Plan, text: Text, nonce: str) -> list[Conversation]:
    """Prompts with nothing in common, of half to one and a half times the tokens asked for."""
    half = plan.prompt_tokens // 2
    lengths = [text.random.randint(plan.prompt_tokens - half, plan.prompt_tokens + half) for _ in range(plan.requests)]
    return [(f"{nonce}.{i} {text.tokens(length)}",) for i, length in enumerate(lengths)]


WORKLOADS: dict[str, Callable[[Plan, Text, str], list[Conversation]]] = {
    "prefix": prefix,
    "multi-turn": multi_turn,
    "random": unshared,
}


def conversations(plan: Plan, tokens_per_word: float, nonce: str) -> list[Conversation]:
    """All of a plan; together they are `plan.requests` turns."""
    return WORKLOADS[plan.workload](plan, Text(plan.seed, tokens_per_word), nonce)
