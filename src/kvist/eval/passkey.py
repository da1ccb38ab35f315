"""Passkey retrieval: a number is said once, somewhere in a long text, and asked for at the end.

::

    [template] There is a pass key in this text ... filler  "The pass key is 48213. Remember it."  filler
    ───────────── context: all of it is computed first, and only then comes the ─► question, and greedy tokens

So a method that drops or rounds what it has read does not know yet what will be asked. The filler is sentences in
random order, the same at every depth of one seed: prefixes that agree are computed once (hit = miss, by the contract).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from kvist.engine.batch import Piece
from kvist.engine.engine import Engine
from kvist.errors import CapacityError
from kvist.text.chat import render
from kvist.text.tokenizer import Tokenizer

DEPTHS = 10
ANSWER = 10
"""Tokens that an answer may take."""

MARGIN = 160
"""Tokens beside the filler at most: what begins, the key, the question, the template, the answer."""

OPENING = "There is a pass key hidden in this text. Find it and remember it."
QUESTION = "Which number is the pass key?"
"""What has only a number for an answer. To "What is the pass key?" a small model also says "a small wooden box": it
hardly decides between the two, and whatever rounds tips the scale, though the number is found all the same."""

BEGINNING = "The pass key is"
"""How the answer begins: what follows is the number, whatever else the model likes to say first."""

FILLER = (
    "The path goes along the river and over the old bridge.", "In the morning there is mist on the fields.",
    "A cart waits in front of the mill.", "The baker opens his shop before the sun is up.",
    "Two boats lie in the harbour, and a third one is on its way.", "Nobody knows how old the lime tree is.",
    "The children walk to school in a row.", "Rain is good for the garden and bad for the roof.",
    "On Thursdays there is a market in the square.", "The clock of the tower is slow, and everybody is used to it.",
    "Behind the wood the road climbs to the next village.", "A dog sleeps in the shade of the wall.",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Haystack:
    """Sentences around a key. The key's sentence has index `place`."""

    sentences: tuple[str, ...]
    place: int
    key: str

    @property
    def text(self) -> str:
        """All of it."""
        return " ".join((OPENING, *self.sentences))


def haystack(length: int, depth: int, seed: int, count: Callable[[str], int]) -> Haystack:
    """A text of about `length` tokens with a key at depth 0 (first) to `DEPTHS` - 1 (last).

    count: tells the tokens of a sentence.
    """
    random = np.random.default_rng([seed, length])
    key = str(random.integers(10_000, 100_000, DEPTHS)[depth])
    costs = [count(" " + sentence) for sentence in FILLER]
    choices = random.integers(0, len(FILLER), length)
    fitting = np.cumsum(np.array(costs)[choices]) <= length - MARGIN
    filler = [FILLER[choice] for choice in choices[fitting]]
    place = round(depth * len(filler) / (DEPTHS - 1))
    needle = f"The pass key is {key}. Remember it."
    return Haystack((*filler[:place], needle, *filler[place:]), place, key)


def prompt(found: Haystack, tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """Token ids of context and question, through the model's chat template where it has one."""
    if tokenizer.chat_template is not None:
        message = {"role": "user", "content": f"{found.text}\n\n{QUESTION}"}
        rendered = render(
            tokenizer.chat_template, [message], bos_token=tokenizer.bos_token, eos_token=tokenizer.eos_token
        )
        context, question, rest = rendered.rpartition(QUESTION)
        if question:
            parts = (context, question + rest + BEGINNING)
            return tokenizer.encode(parts[0], add_special=False), tokenizer.encode(parts[1], add_special=False)
    return tokenizer.encode(found.text), tokenizer.encode(f"\n\n{QUESTION}\n{BEGINNING}", add_special=False)


def answer(engine: Engine, context: list[int], question: list[int], budget: int) -> list[int]:
    """Compute the context, at most `budget` tokens a step, then the question, then choose `ANSWER` tokens greedily.

    Where a policy evicts entries it does so of the context, before the question is there.
    """
    manager, forward = engine.manager, engine.runner.forward
    table = manager.open(manager.match(context))
    try:
        pieces = [context[start : start + budget] for start in range(table.computed, len(context), budget)]
        chosen: list[int] = []
        for number in range(len(pieces) + ANSWER):
            if number == len(pieces) and engine.evictor is not None:
                table = engine.evictor.evict(table, [*context, question[0]])
            tokens = pieces[number] if number < len(pieces) else [chosen[-1]] if chosen else question
            if not manager.reserve(table, len(tokens)):
                raise CapacityError("the pages of a passkey's text do not fit: measure shorter ones")
            read = number < len(pieces)
            logits = forward([Piece(table, tokens, table.positions, "none" if read else "last")])
            if not read:
                chosen.append(int(logits[0].argmax()))
        return chosen
    finally:
        manager.release(table)


def retrieved(engine: Engine, tokenizer: Tokenizer, length: int, depths: int, seed: int, budget: int) -> list[bool]:
    """At which of so many depths, evenly apart, the key is told."""
    found = []
    for depth in sorted({round(i * (DEPTHS - 1) / max(depths - 1, 1)) for i in range(depths)}):
        hidden = haystack(length, depth, seed, lambda text: len(tokenizer.encode(text, add_special=False)))
        context, question = prompt(hidden, tokenizer)
        found.append(hidden.key in tokenizer.decode(answer(engine, context, question, budget)))
    return found
