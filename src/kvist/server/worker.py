"""The engine's thread: orders in, chunks out. Everybody else asks it; nobody else touches the engine.

::

    event loop                                   engine's thread
    submit(orders) ──► commands ──────────────►  engine.submit
                                                 engine.step()      a step at a time, while there is work
    mailbox.take() ◄── wake, once a step ◄─────  fold, mailbox.put
    call(function) ──► commands ──────────────►  function(llm), between two steps
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TypeVar

from kvist.engine.beams import BeamSearch
from kvist.engine.checks import salt_bytes
from kvist.engine.guide import Guide
from kvist.engine.params import BeamSearchParams, RequestMetrics, SamplingParams, TokenOutput
from kvist.errors import InternalError, KvistError
from kvist.fold import Fold, beams
from kvist.llm import LLM
from kvist.server.history import RequestHistory
from kvist.server.logs import log
from kvist.server.mailbox import Ended, Mailbox
from kvist.server.metrics import ServerMetrics

T = TypeVar("T")


class UnavailableError(KvistError):
    """The engine is not ready yet, stops, or has broken down."""


@dataclass(frozen=True, slots=True)
class Order:
    """One prompt to answer. `request_id` names it in the engine, its events and the logs."""

    request_id: str
    prompt_ids: Sequence[int]
    params: SamplingParams | BeamSearchParams
    prompt: str | None = None
    cache_salt: str | None = None
    priority: int = 0
    guide: Guide | None = None


@dataclass(slots=True)
class _Running:
    """An order under way: the number it has in its mailbox, and what its tokens become."""

    order: Order
    number: int
    mailbox: Mailbox
    fold: Fold | None
    search: BeamSearch | None = None
    metrics: RequestMetrics | None = None


class EngineWorker:
    """Owns an `LLM` and the thread that runs it. `metrics` are told what went through."""

    def __init__(self, load: Callable[[], LLM], metrics: ServerMetrics) -> None:
        self.metrics, self.history = metrics, RequestHistory()
        self.leaving = False  # the server stops: whoever streams something without end ends it
        self.loaded: Future[LLM] = Future()
        self.failure: BaseException | None = None  # why there is no engine, or no more
        self.taken = 0  # orders that clients wait for, as `Answering` counts them in the event loop
        self._load = load
        self._commands: deque[Callable[[], None]] = deque()
        self._bell = threading.Condition()
        self._running: dict[str, _Running] = {}
        self._stopping = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._run, name="kvist-engine", daemon=True)

    @property
    def ready(self) -> bool:
        """Whether requests are taken."""
        return self.loaded.done() and not self._stopping and self.failure is None

    @property
    def llm(self) -> LLM:
        """The model: its config, tokenizer and limits are for everybody, its engine is for the engine's thread."""
        self.require()
        return self.loaded.result()

    def require(self) -> None:
        """Raise UnavailableError where nothing would be run."""
        if not self.loaded.done():
            raise UnavailableError("the model is loading: try again in a moment")
        if self.failure is not None:
            raise UnavailableError("there is no engine, and the server is shutting down: its log says why")
        if self._stopping:
            raise UnavailableError("the server is shutting down")

    @property
    def orders(self) -> int:
        """Count of orders that wait or run."""
        return len(self._running)

    def start(self) -> None:
        """Load the model and begin, in the thread. `loaded` says when, or what went wrong. Call it in an event loop."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    def stop(self) -> None:
        """End what still runs, free the model and wait for the thread; idempotent."""
        self._command(self._close)
        if self._thread.is_alive():
            self._thread.join()

    async def submit(self, orders: Sequence[Order], *, eager: bool) -> Mailbox:
        """Queue orders, all or none of them. Raises RequestError for one that can never run."""
        mailbox = Mailbox(len(orders), eager=eager)
        await self.call(lambda llm: self._accept(llm, orders, mailbox))
        return mailbox

    def cancel(self, request_ids: Sequence[str]) -> None:
        """Stop orders wherever they are and free their pages. From any thread; returns at once."""
        self._command(lambda: self._cancel(request_ids))

    def cancel_all(self) -> None:
        """Stop all orders; from any thread. Whoever waits for one is told that the server shuts down."""
        self.leaving = True
        self._command(lambda: self._cancel(list(self._running)))

    async def call(self, function: Callable[[LLM], T]) -> T:
        """The result of a function that the engine's thread runs between two steps."""
        self.require()
        result = Future[T]()

        def run() -> None:
            if not result.set_running_or_notify_cancel():
                return
            try:
                result.set_result(function(self.llm))
            except BaseException as error:
                result.set_exception(error)

        self._command(run)
        return await asyncio.wrap_future(result)

    # -- in the engine's thread --------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            llm = self._load()
        except BaseException as error:
            self.failure = error
            self.loaded.set_exception(error)
            return
        self.metrics.watch(llm)
        self.loaded.set_result(llm)
        try:
            while not self._stopping:
                self._work(llm)
        except BaseException as error:  # a defect: whoever waits is told, /health says so, and the server leaves
            log("engine broke down", level="error", error=f"{type(error).__name__}: {error}", exc_info=error)
            self.failure = InternalError(f"the engine broke down ({type(error).__name__}): the log says more")
            self.failure.__cause__ = error
            self._end_all(self.failure)
        finally:
            while self._commands:  # whoever asks now is told that nobody runs it
                self._commands.popleft()()
            llm.close()

    def _work(self, llm: LLM) -> None:
        """Take all commands, then one step; sleep where there is neither."""
        with self._bell:
            self._bell.wait_for(lambda: bool(self._commands) or llm.engine.has_work)
        while self._commands and not self._stopping:
            self._commands.popleft()()
        if not self._stopping and llm.engine.has_work:
            self._deliver(llm.engine.step())

    def _accept(self, llm: LLM, orders: Sequence[Order], mailbox: Mailbox) -> None:
        taken: list[str] = []
        try:
            for number, order in enumerate(orders):
                self._running[order.request_id] = self._start(llm, order, number, mailbox)
                taken.append(order.request_id)
        except BaseException:
            for name in taken:
                llm.engine.cancel(name)
                del self._running[name]
            raise

    def _start(self, llm: LLM, order: Order, number: int, mailbox: Mailbox) -> _Running:
        salt = salt_bytes(order.cache_salt)
        if isinstance(order.params, BeamSearchParams):
            search = llm.engine.submit_beams(
                order.prompt_ids, order.params, request_id=order.request_id, salt=salt, priority=order.priority
            )
            return _Running(order, number, mailbox, None, search, search.metrics)
        fold = Fold(llm.tokenizer, order.params, order.prompt, order.prompt_ids)
        llm.engine.submit(
            order.prompt_ids, order.params, request_id=order.request_id, salt=salt, watching=fold.watching,
            priority=order.priority, guide=order.guide,
        )  # fmt: skip
        return _Running(order, number, mailbox, fold)

    def _deliver(self, tokens: Sequence[TokenOutput]) -> None:
        """Fold what a step gave into the mailboxes, and wake their takers together."""
        woken: dict[Mailbox, None] = {}
        for token in tokens:
            running = self._running.get(token.request_id)
            if running is None:
                continue
            running.metrics = token.metrics
            if running.fold is None:
                wake = self._end_beams(running, token)
            else:
                wake = running.mailbox.put(running.number, running.fold.add(token))
                self.metrics.token(token)
                if (output := running.fold.output) is not None:
                    wake = self._end(running, Ended(output)) or wake
            if wake:
                woken[running.mailbox] = None
        self._wake(list(woken))

    def _end_beams(self, running: _Running, token: TokenOutput) -> bool:
        if token.finish_reason is None:
            return False
        assert running.search is not None
        output = beams(self.loaded.result().tokenizer, running.order.prompt_ids, running.search)
        return self._end(running, Ended(output))

    def _end(self, running: _Running, ended: Ended) -> bool:
        """An order's last word. Whether its mailbox's taker should be woken."""
        del self._running[running.order.request_id]
        order, metrics = running.order, running.metrics
        self.metrics.ended(order.request_id, metrics, ended)
        if metrics is not None:
            self.history.note(self.loaded.result().engine, order, metrics, ended)
        return running.mailbox.put(running.number, ended)

    def _cancel(self, request_ids: Sequence[str]) -> None:
        woken = []
        for name in request_ids:
            running = self._running.get(name)
            if running is not None:
                self.loaded.result().engine.cancel(name)
                self._end(running, Ended())
                woken.append(running.mailbox)
        self._wake(woken)

    def _end_all(self, error: KvistError) -> None:
        every = list(self._running.values())
        for running in every:
            self._end(running, Ended(error=error))
        self._wake([running.mailbox for running in every])

    def _close(self) -> None:
        self._cancel(list(self._running))
        self._stopping = True

    def _wake(self, mailboxes: Sequence[Mailbox]) -> None:
        if not mailboxes or self._loop is None or self._loop.is_closed():
            return

        def wake() -> None:
            for mailbox in mailboxes:
                mailbox.wake()

        self._loop.call_soon_threadsafe(wake)

    def _command(self, command: Callable[[], None]) -> None:
        with self._bell:
            self._commands.append(command)
            self._bell.notify()
