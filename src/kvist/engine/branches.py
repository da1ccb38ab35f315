"""The branches of one request: one prompt, computed once, then `n` (or `best_of`) answers side by side.

::

    trunk    p0 p1 | p2 p3 | p4                          the prompt, run as one sequence
                             │ its logits are there: fork
    branch 0                 ├─ a0 a1 | ...              goes on in the trunk's pages
    branch 1                 └─ b0 b1 | ...              full pages shared; whoever writes into p4's page copies it

From then on they are sequences like all others: scheduled, preempted and finished one by one. A branch's seed is made
from the request's and its number, so its answer is that of a request alone with that seed, whatever happens to the
others; branch 0 has the request's own.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Tokens

from kvist.cache.manager import CacheManager
from kvist.engine.guide import Guide
from kvist.engine.params import RequestMetrics, SamplingParams
from kvist.engine.sampling.alterations import Alterations
from kvist.engine.sampling.draws import branch_seed
from kvist.engine.scheduler import Scheduler
from kvist.engine.sequence import Sequence, Watch

Watching = Callable[[int], Watch]
"""Makes the watch of a branch, by its number."""


class Family:
    """One request's sequences. `open` are those that have not ended; the first is the trunk until it is forked."""

    def __init__(
        self,
        name: str,
        prompt: Tokens[int],
        params: SamplingParams,
        *,
        limit: int,
        ends: frozenset[int],
        seed: int,
        salt: bytes,
        metrics: RequestMetrics,
        watching: Watching | None = None,
        guide: Guide | None = None,
    ) -> None:
        self.params, self.metrics, self._seed, self._watching = params, metrics, seed, watching
        trunk = Sequence(name, list(prompt), len(prompt), params, limit, ends, seed, salt, metrics)
        if Alterations.wanted(params):
            trunk.alterations = Alterations(params, tuple(prompt), ends)
        if params.prompt_logprobs is not None:
            trunk.prompt_logprobs = []
        trunk.watch = None if watching is None else watching(0)
        trunk.guide = guide
        trunk.draftable = params.branches == 1
        self.open = [trunk]
        self._forked = params.branches == 1

    def fork(self, trunk: Sequence, manager: CacheManager, scheduler: Scheduler) -> list[Sequence]:
        """All that take their first token from the trunk's logits: itself, and once the branches that begin with it.

        The trunk's prompt must be computed, and nothing behind it.
        """
        if self._forked:
            return [trunk]
        assert trunk.table is not None
        self._forked = trunk.draftable = True
        branches = [self._branch(trunk, index) for index in range(1, self.params.branches)]
        for branch in branches:
            branch.table = manager.fork(trunk.table, request=branch.request_id)
        self.open += branches
        for branch in branches:
            scheduler.join(branch)
        return [trunk, *branches]

    def _branch(self, trunk: Sequence, index: int) -> Sequence:
        branch = Sequence(
            trunk.request_id, list(trunk.tokens), trunk.prompt_length, self.params, trunk.limit, trunk.stops,
            branch_seed(self._seed, index), trunk.salt, self.metrics, index=index,
            priority=trunk.priority, turn=trunk.turn, served=trunk.served, kept=trunk.kept,
        )  # fmt: skip
        branch.alterations = None if trunk.alterations is None else trunk.alterations.anew()
        branch.guide = None if trunk.guide is None else trunk.guide.fork()
        branch.watch = None if self._watching is None else self._watching(index)
        return branch
