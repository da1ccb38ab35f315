"""A session: a conversation or a text as tokens that the cache knows, to append to, answer, fork and roll back.

A session is its tokens. It holds **no pages**: what it has computed stays in the cache as all published pages do, found
by content and evicted, least recently used first, when memory is needed for others. So any number may be open, forks
and rollbacks cost nothing, and under pressure the answers are the same and only slower. What is not in the cache:

- the last tokens that do not fill a page yet (fewer than `page_size`) are run again when a session goes on;
- with ``enable_prefix_caching=False`` or ``enable_cache=False`` everything is.

::

    with llm.session() as session:
        session.append([{"role": "user", "content": "Name a tree."}])
        print(session.generate(params).outputs[0].text)
        other = session.fork()                              # the same pages, until the two differ
        session.append([{"role": "user", "content": "And one more."}])
        for chunk in session.stream(params): ...            # the history is found in the cache
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from kvist.engine.engine import Engine
from kvist.engine.params import RequestMetrics, SamplingParams, TokenOutput
from kvist.errors import RequestError, UsageError
from kvist.fold import Fold
from kvist.outputs import RequestOutput, TextChunk
from kvist.text.guided import Guides
from kvist.text.history import History, encode_behind, said_tokens
from kvist.text.tokenizer import Tokenizer

Message = Mapping[str, object]
Render = Callable[[Sequence[Message]], str]
"""Makes the text of a conversation, up to where the answer begins; UsageError where there is no template."""


@dataclass(frozen=True, slots=True)
class Mark:
    """A place to come back to, `length` tokens from the beginning. It stays good whatever the session does."""

    length: int
    history: History = field(repr=False)
    engine: Engine = field(repr=False)


class Session:
    """Made by `LLM.session`. `name` is for people. One thread uses it, but for `stop`."""

    def __init__(
        self, name: str, tokenizer: Tokenizer, engine: Engine, render: Render, guides: Guides, salt: bytes = b""
    ) -> None:
        self.name, self._salt = name, salt
        self._tokenizer, self._engine, self._render, self._guides = tokenizer, engine, render, guides
        self._history = History()
        self._answering = self._stopped = self._closed = False

    @property
    def token_ids(self) -> list[int]:
        """All tokens, answers included; the end token of an answer is there once something stands behind it."""
        return self._history.token_ids

    @property
    def text(self) -> str:
        """The text of the tokens, without control tokens."""
        return self._tokenizer.decode(self.token_ids)

    @property
    def messages(self) -> tuple[Message, ...]:
        """The conversation, answers included; empty for a plain text."""
        return self._history.messages or ()

    def __len__(self) -> int:
        """Count of tokens."""
        return self._history.length

    def append(self, what: str | Sequence[int] | Sequence[Message]) -> None:
        """Add text, token ids or messages. Nothing is computed before the next answer.

        A session is a text or a conversation, which the first thing appended decides. Raises UsageError for the other
        kind, for messages that the template refuses, and for tokens that the model does not have.
        """
        self._require_idle()
        if isinstance(what, str):
            begins = not self._history.pieces  # only then with the beginning token
            self._append_tokens(self._tokenizer.encode(what) if begins else encode_behind(self._tokenizer, what))
        elif len(what) > 0 and all(isinstance(item, Mapping) for item in what):
            messages = [dict(item) for item in what if isinstance(item, Mapping)]
            if self._history.messages is None and self._history.pieces:
                raise UsageError("this session is plain text: append text or token ids, or open another for messages")
            rendered = self._render([*self.messages, *messages])
            self._history = self._history.with_messages(self._tokenizer, messages, rendered)
        else:
            self._append_tokens([_token(item) for item in what])

    def generate(self, sampling_params: SamplingParams | None = None) -> RequestOutput:
        """Answer, and keep the answer. Its `metrics.cached_tokens` says how much of the session was in the cache."""
        output: list[RequestOutput] = []
        for _ in self._run(sampling_params or SamplingParams(), output):
            pass
        return output[0]

    def stream(self, sampling_params: SamplingParams | None = None) -> Iterator[TextChunk]:
        """Answer, chunk by chunk. Leaving the loop stops the answer and keeps what was generated."""
        yield from self._run(sampling_params or SamplingParams(), [])

    def stop(self) -> None:
        """End the answer under way after the step that runs; its finish reason is "abort", and what is there is kept.

        May be called from a signal handler or another thread; does nothing while there is no answer.
        """
        self._stopped = self._answering

    def fork(self, name: str | None = None) -> Session:
        """Make a second session with the same history, found in the same pages; neither sees the other go on."""
        self._require_idle()
        name = name or f"{self.name}-fork"
        other = Session(name, self._tokenizer, self._engine, self._render, self._guides, self._salt)
        other._history = self._history
        return other

    def mark(self) -> Mark:
        """The present, to roll back to."""
        return Mark(self._history.length, self._history, self._engine)

    def rollback(self, to: int | Mark) -> None:
        """Drop the last `to` tokens, or all that came after a mark of this session or of one it was forked from.

        A conversation may be cut inside answers, not inside a message that was appended (UsageError says where).
        """
        self._require_idle()
        if isinstance(to, Mark):
            if to.engine is not self._engine:
                raise UsageError("that is a mark of another LLM's session: its tokens mean something else here")
            self._history = to.history
            return
        if not isinstance(to, int) or not 0 <= to <= len(self):
            raise UsageError(f"cannot roll back {to!r} tokens: the session has {len(self)}")
        if to:
            self._history = self._history.cut(self._tokenizer, len(self) - to)

    def drop(self, messages: int) -> None:
        """Drop the last so many messages of a conversation. Those that were appended together go together."""
        self._require_idle()
        left = len(self.messages) - messages
        if messages < 0 or left < 0:
            raise UsageError(f"cannot drop {messages} messages: the session has {len(self.messages)}")
        kept = [piece for piece in self._history.pieces if piece.messages <= left]
        if (kept[-1].messages if kept else 0) != left:
            raise UsageError(f"{left} messages end between some that were appended together: drop more, or fewer")
        self.rollback(sum(len(piece.ids) for piece in self._history.pieces[len(kept) :]))

    def close(self) -> None:
        """Forget the history; idempotent. What is cached of it stays until the memory is needed."""
        self.stop()
        self._closed, self._history = True, History()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _append_tokens(self, ids: Sequence[int]) -> None:
        if self._history.messages is not None:
            raise UsageError("this session is a conversation: append messages, or open another for plain text")
        vocabulary = self._engine.limits.vocab_size
        bad = next((token for token in ids if not 0 <= token < vocabulary), None)
        if bad is not None:
            raise RequestError(f"token id {bad} is not in this model's vocabulary of {vocabulary}")
        self._history = self._history.with_tokens(ids)

    def _run(self, params: SamplingParams, output: list[RequestOutput]) -> Iterator[TextChunk]:
        """The chunks of an answer, which is kept however this ends; its output goes into the list."""
        self._require_idle()
        if params.branches != 1:
            raise UsageError("a session has one answer: leave n and best_of out, and fork it for more")
        ids, guide = self.token_ids, self._guides.guide(params.structured_outputs)
        fold = Fold(self._tokenizer, params, None, ids)
        chunks: list[TextChunk] = []
        self._answering, self._stopped = True, False
        try:
            following = self._engine.follow(ids, params, salt=self._salt, watching=fold.watching, guide=guide)
            with closing(following) as steps:
                for outputs in steps:
                    for token in outputs:
                        chunks.append(fold.add(token))
                        yield chunks[-1]
                    if self._stopped:
                        break
            if fold.output is None:
                name, metrics = self.name, RequestMetrics(len(ids))
                if chunks:
                    name, metrics = chunks[-1].request_id, chunks[-1].metrics
                chunks.append(fold.add(TokenOutput(name, None, "abort", metrics)))
                yield chunks[-1]
            if fold.output is not None:
                output.append(fold.output)
        finally:
            self._answering = False
            self.keep(chunks)

    def keep(self, chunks: Sequence[TextChunk]) -> None:
        """Take an answer into the history: without its end token, and without what a stop string cut off.

        For who runs the engine otherwise than by `generate` and `stream`; the chunks answer `token_ids`.
        """
        made = [chunk.token_id for chunk in chunks if chunk.token_id is not None]
        if not made or self._closed:
            return
        text = "".join(chunk.text for chunk in chunks)
        last = chunks[-1]
        if last.finish_reason == "stop" and isinstance(last.stop_reason, str):
            made = said_tokens(self._tokenizer, made, text)
        elif last.finish_reason == "stop":
            made.pop()
        self._history = self._history.with_answer(made, text)

    def _require_idle(self) -> None:
        if self._closed:
            raise UsageError(f"session {self.name} is closed: open another")
        if self._answering:
            raise UsageError(f"session {self.name} is answering: let that end, or leave its loop, first")


def _token(item: object) -> int:
    """A token id, also one of numpy's integers."""
    index = getattr(item, "__index__", None)
    if index is None or isinstance(item, bool):
        raise UsageError(f"{item!r} cannot be appended: give text, a list of token ids, or a list of messages")
    return int(index())
