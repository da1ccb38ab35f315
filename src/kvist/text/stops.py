"""An answer's text while it is made: what is certain goes out, what may be the beginning of a stop string is held back.

::

    stop "END"      tokens:   "the "   "E"    "ND of"             "the " goes out at once, "E" is held back,
                    out:      the      -      (stop: text ends)   and then either both go out or the text ends before it

A stop string is found wherever the edges of tokens lie. Of several the one that begins first counts, then the one that
was named first.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from kvist.text.detokenizer import Detokenizer


class AnswerText:
    """One answer's text. `watch` is told each token when it is chosen; `take` gives the text, token by token.

    include: the text ends behind the stop string, not before it. least: stop strings that end within the text of so
    many tokens do not count.
    """

    def __init__(
        self, detokenizer: Detokenizer, stops: Sequence[str] = (), *, include: bool = False, least: int = 0
    ) -> None:
        self._detokenizer = detokenizer
        self._stops, self._include, self._least = tuple(stops), include, least
        self._longest = max(map(len, self._stops), default=0)
        self._held = ""
        self._tokens = 0
        self._pieces: deque[str] = deque()

    def watch(self, token_id: int) -> str | None:
        """Add a token; the stop string that it completes, if it completes one. Nothing may be added after that."""
        new = self._detokenizer.add(token_id)
        self._tokens += 1
        text, before = self._held + new, len(self._held)
        found = self._find(text, before) if new and self._tokens > self._least else None
        if found is not None:
            start, stop = found
            self._held = ""
            self._pieces.append(text[: start + len(stop)] if self._include else text[:start])
            return stop
        cut = self._certain(text) if new else 0
        self._pieces.append(text[:cut])
        self._held = text[cut:]
        return None

    def take(self) -> str:
        """The text that became certain with the next token that was added and not asked for."""
        return self._pieces.popleft()

    def end(self) -> str:
        """The rest, where no stop string ended the text: what was held back, U+FFFD for half a character."""
        rest, self._held = self._held + self._detokenizer.finish(), ""
        return rest

    def _find(self, text: str, before: int) -> tuple[int, str] | None:
        """The first stop string of `text` that ends behind its first `before` characters, and where it begins."""
        places = [(text.find(stop, max(0, before - len(stop) + 1)), i) for i, stop in enumerate(self._stops)]
        start, which = min((place for place in places if place[0] >= 0), default=(-1, -1))
        return None if start < 0 else (start, self._stops[which])

    def _certain(self, text: str) -> int:
        """Length of the part that cannot be the beginning of a stop string any more."""
        for at in range(max(0, len(text) - self._longest + 1), len(text)):
            if any(len(stop) > len(text) - at and stop.startswith(text[at:]) for stop in self._stops):
                return at
        return len(text)
