"""The branches of a chat: turns to drop, to answer again and to fork. Nothing here knows a terminal.

::

    branch 1   question ─ answer ─ question ─ answer            /rollback 1 drops the last two
                                 └ branch 2   question ─ answer /fork: the same history, and the same pages
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass, replace

from kvist.engine.params import SamplingParams
from kvist.errors import UsageError
from kvist.outputs import TextChunk
from kvist.session import Mark, Session


@dataclass(frozen=True, slots=True)
class Turn:
    """A question with its answer. before, asked: to where the session is rolled back to drop, to answer again.

    tries: how often it was answered again.
    """

    before: Mark
    asked: Mark
    tries: int = 0


@dataclass(slots=True)
class Branch:
    """One path through the chat. system: what every conversation begins with, if anything."""

    name: str
    session: Session
    turns: list[Turn]
    system: str | None = None

    def ask(self, text: str) -> None:
        """Add a question. UsageError, and nothing is added, where the template refuses it."""
        before = self.session.mark()
        opening = [] if self.system is None or self.session.messages else [{"role": "system", "content": self.system}]
        self.session.append([*opening, {"role": "user", "content": text}])
        self.turns.append(Turn(before, self.session.mark()))

    def answer(self, params: SamplingParams) -> Generator[TextChunk, None, None]:
        """Answer the last question. Where not one token came of it, the question is taken back."""
        turn = self.turns[-1]
        try:
            yield from self._answer(turn, params)
        finally:
            if len(self.session.messages) == len(turn.asked.history.messages or ()):
                self.session.rollback(turn.before)
                self.turns.pop()

    def answer_again(self, params: SamplingParams) -> Generator[TextChunk, None, None]:
        """Answer the last question anew, with another seed. Where not one token comes of it, the old answer stays."""
        if not self.turns:
            raise UsageError("there is no answer yet to try again: ask something first")
        old, turn = self.session.mark(), replace(self.turns[-1], tries=self.turns[-1].tries + 1)
        self.session.rollback(turn.asked)
        try:
            yield from self._answer(turn, params)
        finally:
            if len(self.session.messages) == len(turn.asked.history.messages or ()):
                self.session.rollback(old)
            else:
                self.turns[-1] = turn

    def rollback(self, turns: int) -> None:
        """Drop the last turns."""
        if not 0 < turns <= len(self.turns):
            raise UsageError(f"cannot drop {turns} turns: branch {self.name} has {len(self.turns)}")
        self.session.rollback(self.turns[-turns].before)
        del self.turns[-turns:]

    def clear(self) -> None:
        """Drop all turns."""
        if self.turns:
            self.rollback(len(self.turns))

    def fork(self, name: str) -> Branch:
        """Make another branch with the same history."""
        return Branch(name, self.session.fork(name), list(self.turns), self.system)

    def _answer(self, turn: Turn, params: SamplingParams) -> Iterator[TextChunk]:
        if params.seed is not None:
            params = replace(params, seed=params.seed + turn.tries)
        yield from self.session.stream(params)


class Branches:
    """All branches of a chat, by name, and the one that is current."""

    def __init__(self, first: Session, system: str | None) -> None:
        self.current = Branch("1", first, [], system)
        self.all = {"1": self.current}

    def fork(self, name: str = "") -> bool:
        """Switch to the branch of that name, or make it from the current one; without a name a new one, numbered.

        Whether it was made.
        """
        if not name:
            name = str(next(i for i in range(1, len(self.all) + 2) if str(i) not in self.all))
        made = name not in self.all
        if made:
            self.all[name] = self.current.fork(name)
        self.current = self.all[name]
        return made
