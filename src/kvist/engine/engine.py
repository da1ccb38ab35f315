"""The engine: requests in, tokens out, one step at a time. It knows token ids, no text; one thread runs it."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator
from collections.abc import Sequence as Tokens
from contextlib import closing

from kvist.cache.manager import CacheManager
from kvist.engine.admission import EngineLimits, admit
from kvist.engine.answers import Answers, Observer
from kvist.engine.batch import Piece, Wanted
from kvist.engine.beams import BeamSearch
from kvist.engine.branches import Family, Watching
from kvist.engine.eviction import Evictor
from kvist.engine.guide import Guide
from kvist.engine.params import BeamSearchParams, RequestMetrics, SamplingParams, TokenOutput
from kvist.engine.runner import Runner
from kvist.engine.scheduler import Schedule, Scheduler
from kvist.engine.sequence import Sequence
from kvist.engine.speculative.speculator import Speculator
from kvist.errors import UsageError
from kvist.events import EventChannel, EventKind
from kvist.kernels.program import Floats


class Engine:
    """Runs requests over a runner and a cache manager.

    ::

        request = engine.submit(prompt_ids, SamplingParams(...))
        while engine.has_work:
            for output in engine.step(): ...
    """

    def __init__(
        self,
        runner: Runner,
        manager: CacheManager,
        limits: EngineLimits,
        events: EventChannel,
        speculation: Speculator | None = None,
        evictor: Evictor | None = None,
    ) -> None:
        self.runner, self.manager, self.limits, self.events = runner, manager, limits, events
        self.evictor = evictor
        self.scheduler = Scheduler(manager, limits.max_num_seqs, limits.max_num_batched_tokens, events, evictor)
        self.answers = Answers(runner, manager, self.scheduler, events, limits.enable_cache, speculation)
        self._inboxes: dict[str, list[TokenOutput]] = {}  # of the streams that are open
        self._submitted = 0
        self.steps = 0

    @property
    def has_work(self) -> bool:
        """Whether a request waits or runs."""
        return bool(self.answers.requests)

    @property
    def speculation(self) -> Speculator | None:
        """Who drafts, if somebody does."""
        return self.answers.speculation

    @speculation.setter
    def speculation(self, speculation: Speculator | None) -> None:
        self.answers.speculation = speculation

    @property
    def observe(self) -> Observer | None:
        """Who is shown the logits that tokens are chosen from, if somebody is."""
        return self.answers.observe

    @observe.setter
    def observe(self, observe: Observer | None) -> None:
        self.answers.observe = observe

    def submit(
        self,
        prompt: Tokens[int],
        params: SamplingParams,
        *,
        request_id: str | None = None,
        salt: bytes = b"",
        watching: Watching | None = None,
        priority: int = 0,
        pin: bool = False,
        guide: Guide | None = None,
    ) -> str:
        """Queue a request and return its id. watching: makes for each of its branches who watches its text.

        salt: only what was computed under the same one is found in the cache. priority: lower runs first; a level is
        worth so many steps of waiting that nobody waits for ever (see `scheduler`). pin: keep the full pages of its
        prompt in the cache until `unpin` is called with its id, unless it is cancelled before its first token. guide:
        what its answers must keep to, before their first token.

        Raises RequestError for a prompt that can never run, with the arithmetic.
        """
        if params.structured_outputs is not None and guide is None:
            raise UsageError("structured_outputs need a guide: the engine knows no text and cannot make one")
        longest = max((request.open[0].limit for request in self.answers.requests.values()), default=0)
        taken = admit(
            prompt, params, self.limits, self.manager, salt=salt, priority=priority, longest=longest if pin else 0,
            evictor=self.evictor,
        )  # fmt: skip
        name = self._name(request_id)
        if pin:
            self.manager.pin(name, prompt, salt=salt)
        seed = params.seed if params.seed is not None else (self.limits.seed << 32) + self._submitted
        metrics = self._metrics(prompt)
        family = Family(
            name, prompt, params, limit=taken.limit, ends=taken.ends, seed=seed, salt=salt, metrics=metrics,
            watching=watching, guide=guide,
        )  # fmt: skip
        self._queue(name, family, priority)
        return name

    def submit_beams(self, prompt: Tokens[int], params: BeamSearchParams, *, request_id: str | None = None,
                     salt: bytes = b"", priority: int = 0) -> BeamSearch:  # fmt: skip
        """Queue a beam search; its `finished` are the answers, the best first, once a step gives its last output.

        Raises RequestError for a prompt that can never run, with the arithmetic.
        """
        taken = admit(prompt, params, self.limits, self.manager, salt=salt, priority=priority, evictor=self.evictor)
        name = self._name(request_id)
        metrics = self._metrics(prompt)
        search = BeamSearch(name, prompt, params, ends=taken.ends, salt=salt, metrics=metrics)
        self._queue(name, search, priority)
        return search

    def step(self) -> list[TokenOutput]:
        """Run one step; what it gave each request that got tokens. Nothing to do gives an empty list."""
        schedule = self._schedule()
        if not schedule:
            return []
        drafts = self._drafts(schedule)
        pieces = [self._piece(sequence, count, drafts.get(sequence, [])) for sequence, count in schedule.items()]
        logits = self._forward(pieces)
        self.steps += 1
        outputs = self.answers.take(list(zip(schedule, pieces, strict=True)), logits, self.runner.likeliest().tolist())
        for output in outputs:
            if output.request_id in self._inboxes:
                self._inboxes[output.request_id].append(output)
        if self.limits.check_integrity and not self.has_work:
            self.manager.check_integrity()
        return outputs

    def stream(
        self,
        prompt: Tokens[int],
        params: SamplingParams,
        *,
        salt: bytes = b"",
        watching: Watching | None = None,
        priority: int = 0,
        pin: bool = False,
        guide: Guide | None = None,
    ) -> Iterator[TokenOutput]:
        """Submit one request and yield its outputs as they come; leaving the loop cancels it.

        Other requests run along. Several streams may be open: each keeps what a step gave it until it is asked.
        """
        following = self.follow(prompt, params, salt=salt, watching=watching, priority=priority, pin=pin, guide=guide)
        with closing(following) as steps:
            for outputs in steps:
                yield from outputs

    def follow(
        self,
        prompt: Tokens[int],
        params: SamplingParams,
        *,
        salt: bytes = b"",
        watching: Watching | None = None,
        priority: int = 0,
        pin: bool = False,
        guide: Guide | None = None,
    ) -> Generator[list[TokenOutput], None, None]:
        """As `stream`, but comes back after every step, with all it gave: nothing while a prompt is read.

        So one can leave between any two steps, and the request is cancelled.
        """
        name = self.submit(prompt, params, salt=salt, watching=watching, priority=priority, pin=pin, guide=guide)
        self._inboxes[name] = []
        try:
            while name in self.answers.requests or self._inboxes[name]:
                if not self._inboxes[name]:
                    self.step()
                given, self._inboxes[name] = self._inboxes[name], []
                yield given
        finally:
            del self._inboxes[name]
            self.cancel(name)

    def cancel(self, request_id: str) -> bool:
        """Stop a request wherever it is and free its pages; False if it is not running (any more)."""
        request = self.answers.requests.get(request_id)
        if request is not None and request.metrics.first_token_time is None:
            self.manager.unpin(request_id)
        return self.answers.cancel(request_id)

    def unpin(self, request_id: str | None = None) -> int:
        """Let go of the pin of a request, or of all (None). Returns how many pages may be evicted from now on."""
        names = self.manager.pins.names if request_id is None else [request_id]
        return sum(self.manager.unpin(name) for name in names)

    def close(self) -> None:
        """Give the memory of all pools back. Nothing else may be called afterwards."""
        if self.speculation is not None:
            self.speculation.close()
        self.manager.close()

    def _metrics(self, prompt: Tokens[int]) -> RequestMetrics:
        """A new request's, with all that changes results by name."""
        policy, dtype, lossy = self.limits.policy, self.limits.kv_cache_dtype, self.limits.lossy
        return RequestMetrics(
            len(prompt), policy=policy, kv_cache_dtype=dtype, lossy=lossy, arrival_time=time.monotonic()
        )

    def _name(self, request_id: str | None) -> str:
        self._submitted += 1
        name = f"req-{self._submitted}" if request_id is None else request_id
        if name in self.answers.requests:
            raise UsageError(f"request {name} is running already: give another id")
        return name

    def _queue(self, name: str, request: Family | BeamSearch, priority: int) -> None:
        self.answers.requests[name] = request
        request.open[0].priority = priority
        self.scheduler.add(request.open[0])
        if self.events.listening:
            self.events.emit(EventKind.REQUEST_QUEUED, request=name, count=request.metrics.prompt_tokens)

    def _schedule(self) -> Schedule:
        """The next step's; pages of beams that wait for others are given up where nobody could run otherwise."""
        evicting = self.scheduler.evict()
        while not (schedule := self.scheduler.schedule()) and not evicting and self.answers.give_up_pages():
            evicting = self.scheduler.evict()
        return schedule

    def _drafts(self, schedule: Schedule) -> dict[Sequence, list[int]]:
        """What the proposer guesses, as far as budget and pages allow; never empty lists."""
        if self.speculation is None:
            return {}
        proposals = self.speculation.propose(schedule, self.scheduler.room(schedule))
        granted = {s: draft[: self.scheduler.grant(s, schedule[s], len(draft))] for s, draft in proposals.items()}
        return {sequence: draft for sequence, draft in granted.items() if draft}

    def _piece(self, sequence: Sequence, count: int, draft: list[int]) -> Piece:
        """What a sequence runs in this step."""
        assert sequence.table is not None
        start = sequence.computed
        tokens = sequence.tokens[start : start + count] + draft
        ready = start + count == len(sequence.tokens)
        # drafts stand behind a single token
        wanted: Wanted = "all" if draft or sequence.reads_prompt else "last" if ready else "none"
        sequence.metrics.computed_tokens += len(tokens)
        sequence.metrics.kv_projections += len(tokens)
        return Piece(sequence.table, tokens, start, wanted, len(draft))

    def _forward(self, pieces: list[Piece]) -> Floats:
        """Run the pieces, and let speculation know what such a step takes (prompts have another price)."""
        if self.speculation is None:
            return self.runner.forward(pieces)
        begin = time.perf_counter()
        logits = self.runner.forward(pieces)
        if all(len(piece.tokens) == 1 + piece.drafts for piece in pieces):
            self.speculation.cost.note(sum(len(piece.tokens) for piece in pieces), time.perf_counter() - begin)
        return logits
