"""A sequence: the tokens of one branch of a request, and how far they are computed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from kvist.cache.table import Kept, PageTable
from kvist.engine.guide import Guide
from kvist.engine.params import RequestMetrics, SamplingParams, TokenLogprob
from kvist.engine.sampling.alterations import Alterations

Watch = Callable[[int], str | None]
"""Told each token of an answer as it is chosen, but for one of the stop tokens; says the stop string that it completes,
if it completes one. So text is watched without the engine knowing any.
"""

READ = 256  # rows of logits that a step gives for log-probabilities of a prompt, at most: they take memory


@dataclass(eq=False, slots=True)
class Sequence:
    """Tokens being generated. The scheduler alone sets `table`; None while it waits.

    limit: total tokens after which it ends. stops: token ids that end it. seed: of its draws, fixed at submission.
    index: which branch of its request it is. prompt_logprobs: collected so far, of the tokens from the second on; None
    where nobody asked. cumulative: log-probability of the answer, where it is known. draftable: whether tokens may be
    drafted for it. priority: lower runs first. turn: its request's place in the order of all, set by the scheduler.
    held: steps it waited for a prefix that another computed. served: the last step it had tokens in. kept: what is to
    be left of its prompt, where a policy evicts entries. guide: what may follow its answer so far; None: anything.
    """

    request_id: str
    tokens: list[int]
    prompt_length: int
    params: SamplingParams
    limit: int
    stops: frozenset[int]
    seed: int
    salt: bytes
    metrics: RequestMetrics
    table: PageTable | None = field(default=None)
    index: int = 0
    alterations: Alterations | None = None
    watch: Watch | None = None
    prompt_logprobs: list[tuple[TokenLogprob, ...]] | None = None
    cumulative: float = 0.0
    draftable: bool = True
    priority: int = 0
    turn: tuple[int, int] = (0, 0)
    held: int = 0
    served: int = 0
    kept: Kept | None = None
    guide: Guide | None = None

    @property
    def computed(self) -> int:
        """Tokens whose K and V are in pages."""
        return 0 if self.table is None else self.table.positions

    @property
    def uncomputed(self) -> int:
        """Tokens that must still be run; the last one's logits give the next token."""
        return len(self.tokens) - self.computed

    @property
    def generated(self) -> int:
        """Tokens made so far."""
        return len(self.tokens) - self.prompt_length

    @property
    def takes_likeliest(self) -> bool:
        """Whether its next token is the one with the largest logit, as the model gave it."""
        return self.alterations is None and self.guide is None and self.params.greedy

    @property
    def reads_prompt(self) -> bool:
        """Whether logits of its prompt are still wanted."""
        return self.prompt_logprobs is not None and len(self.prompt_logprobs) < self.prompt_length - 1

    @property
    def reusable(self) -> int:
        """Tokens that may come from the cache: not the last, nor one whose logits are wanted."""
        return len(self.tokens) - 1 if not self.reads_prompt else len(self.prompt_logprobs or ())

    @property
    def prefix(self) -> int:
        """Tokens of those that were computed with all before them in sight."""
        return self.reusable if self.kept is None else min(self.reusable, len(self.kept.tokens))

    @property
    def ripe(self) -> bool:
        """Whether entries of its prompt are to be evicted now."""
        return (
            self.kept is not None
            and self.table is not None
            and self.computed == len(self.kept.tokens)
            and (self.table.kept is None)
        )

    @property
    def runnable(self) -> int:
        """Tokens that a step may run."""
        count = self.uncomputed
        if self.kept is not None and (self.table is None or self.table.kept is None):
            count = len(self.kept.tokens) - self.computed
        return min(count, READ) if self.reads_prompt else count
