"""The work: cases that an engine runs, and the rows of the table that are read off them."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import Any, Literal

Prompts = list[list[int]]
VOCABULARY = 49_152  # token ids of SmolLM2
Quantity = Literal["decode", "first", "again"]


@dataclass(frozen=True, slots=True)
class Case:
    """So many prompts of `context` tokens, run together for `new_tokens` each; `again`: then the same once more."""

    name: str
    sequences: int
    context: int
    new_tokens: int
    again: bool = False

    def warm_up(self) -> Case:
        """A small piece of work of the same shape: memory is touched, kernels are chosen, nothing is kept."""
        return Case(f"{self.name} warm-up", self.sequences, min(self.context, 512), min(self.new_tokens, 4))


CASES = (
    Case("context_32", 1, 32, 65),
    Case("context_32_16", 16, 32, 49),
    Case("context_32_64", 64, 32, 33),
    Case("context_512", 1, 512, 1),
    Case("context_2048", 1, 2048, 1, again=True),
    Case("context_8000", 1, 8000, 33),
)


@dataclass(frozen=True, slots=True)
class Row:
    """One row of the table: what of which case.

    decode: tokens per second of all sequences together. first: seconds to the first token. again: the same for a
    prompt that was run before.
    """

    name: str
    title: str
    case: str
    quantity: Quantity

    def value(self, measurement: dict[str, Any]) -> float | None:
        """Tokens per second or seconds; None where the engine gave none."""
        if self.quantity != "decode":
            found: float | None = measurement.get(self.quantity)
            return found
        return measurement["decode_tokens"] / measurement["decode_seconds"] if measurement["decode_tokens"] else None

    @property
    def faster_is_more(self) -> bool:
        """Whether a larger value is the better one."""
        return self.quantity == "decode"


ROWS = (
    Row("decode_1", "decode, 1 sequence, short context", "context_32", "decode"),
    Row("decode_1_ctx8000", "decode, 1 sequence, 8,000 tokens of context", "context_8000", "decode"),
    Row("decode_16", "decode, 16 sequences", "context_32_16", "decode"),
    Row("decode_64", "decode, 64 sequences", "context_32_64", "decode"),
    Row("prefill_512", "prefill, 512 tokens", "context_512", "first"),
    Row("prefill_2048", "prefill, 2,048 tokens", "context_2048", "first"),
    Row("prefill_8000", "prefill, 8,000 tokens", "context_8000", "first"),
    Row("ttft_warm_2048", "first token, 2,048 tokens cached", "context_2048", "again"),
)


def chosen_rows(names: str | None, quick: bool) -> list[Row]:
    """The rows that a comma-separated list names; without one all, or with `quick` all but those of 8,000 tokens."""
    if names is None:
        return [row for row in ROWS if not (quick and row.case == "context_8000")]
    wanted, known = names.split(","), [row.name for row in ROWS]
    for name in wanted:
        if name not in known:
            raise ValueError(f"no row is called {name}; there are {', '.join(known)}")
    return [row for row in ROWS if row.name in wanted]


def cases_of(rows: list[Row], quick: bool) -> list[Case]:
    """The cases that rows are read off; with `quick` a quarter of the new tokens."""
    wanted = {row.case for row in rows}
    cases = [case for case in CASES if case.name in wanted]
    return [replace(case, new_tokens=max(case.new_tokens // 4, 1)) for case in cases] if quick else cases


def prompts(case: Case, turn: int) -> Prompts:
    """Random token ids, the same for every engine and on every machine, new ones for every round."""
    ids = random.Random(f"{case.name}, round {turn}")
    return [[ids.randrange(VOCABULARY) for _ in range(case.context)] for _ in range(case.sequences)]
