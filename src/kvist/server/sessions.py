"""Sessions over HTTP: conversations that the server keeps as tokens, each tenant's own.

They hold no pages (see `kvist.session`): what they have computed is in the cache, found by content.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from kvist.llm import LLM
from kvist.outputs import TextChunk
from kvist.server.failures import ApiError
from kvist.session import Mark, Session


@dataclass(slots=True)
class Kept:
    """A session and when it was made. `busy`: an answer is under way."""

    session: Session
    cache_salt: str | None
    created: int = field(default_factory=lambda: int(time.time()))
    busy: bool = False
    _before: Mark | None = None

    def begin(self) -> None:
        """An answer is being prepared: nothing else is done with the session."""
        self.busy, self._before = True, self.session.mark()

    def abandon(self) -> None:
        """There will be no answer: the session is as it was."""
        assert self._before is not None
        self.busy = False
        self.session.rollback(self._before)

    def end(self, chunks: Sequence[TextChunk]) -> None:
        """Keep an answer, however it ended."""
        self.busy = False
        self.session.keep(chunks)

    def as_json(self) -> dict[str, Any]:
        """What a client is told."""
        session = self.session
        return {
            "object": "session", "name": session.name, "created": self.created, "tokens": len(session),
            "messages": list(session.messages), "text": "" if session.messages else session.text, "busy": self.busy,
        }  # fmt: skip


class SessionStore:
    """All sessions of a server, by tenant and name. Used in the event loop only."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._kept: dict[str, dict[str, Kept]] = {}

    def list(self, tenant: str) -> list[Kept]:
        """A tenant's sessions, oldest first."""
        return list(self._kept.get(tenant, {}).values())

    def get(self, tenant: str, name: str) -> Kept:
        """One of them; ApiError 404 where there is none."""
        found = self._kept.get(tenant, {}).get(name)
        if found is None:
            raise ApiError(
                404, f"there is no session {name[:80]!r}: POST /v1/sessions makes one", "name", "session_not_found"
            )
        return found

    def open(self, llm: LLM, tenant: str, name: str | None, salt: str | None) -> Kept:
        """A new session."""
        return self._add(tenant, Kept(llm.session(self._name(tenant, name), cache_salt=salt), salt))

    def fork(self, tenant: str, name: str, other: str | None) -> Kept:
        """A second session with the history of one; neither sees the other go on."""
        kept = self.idle(tenant, name)
        return self._add(tenant, Kept(kept.session.fork(self._name(tenant, other, f"{name}-fork")), kept.cache_salt))

    def idle(self, tenant: str, name: str) -> Kept:
        """One that is not answering; ApiError 409 for one that is."""
        kept = self.get(tenant, name)
        if kept.busy:
            raise ApiError(409, f"session {name[:80]!r} is answering: wait for its end, or close that request", "name")
        return kept

    def delete(self, tenant: str, name: str) -> None:
        """Forget a session. What is cached of it stays until the memory is needed."""
        self.idle(tenant, name).session.close()
        del self._kept[tenant][name]

    def _add(self, tenant: str, kept: Kept) -> Kept:
        self._kept.setdefault(tenant, {})[kept.session.name] = kept
        return kept

    def _name(self, tenant: str, name: str | None, stem: str = "session") -> str:
        """The name asked for, if it is free, or one that is."""
        mine = self._kept.get(tenant, {})
        if len(mine) >= self._most:
            raise ApiError(
                429, f"{len(mine)} sessions are open, and {self._most} may be: delete one", code="too_many_sessions"
            )
        if name is None:
            return next(made for made in _names(stem) if made not in mine)
        if name in mine:
            raise ApiError(409, f"there is a session {name[:80]!r} already: give another name", "name")
        return name


def _names(stem: str) -> Iterator[str]:
    number = 1
    while True:
        yield f"{stem}-{number}"
        number += 1


def listed(kept: Sequence[Kept]) -> dict[str, Any]:
    """A list of sessions as clients get it."""
    return {"object": "list", "data": [one.as_json() for one in kept]}
