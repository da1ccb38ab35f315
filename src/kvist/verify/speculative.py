"""Scenarios of speculative decoding: tokens that were drafted and checked together, against one by one.

Each runs all prompts in a batch with drafts, then some of them again, which find the pages that were sealed meanwhile.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from kvist.config import SpeculativeConfig
from kvist.engine.sequence import Sequence
from kvist.engine.speculative.proposer import Proposer
from kvist.errors import InternalError
from kvist.models.load import Model
from kvist.verify.record import Bench, Difference, Record, compare, run

BATCH = 7


def ngram(bench: Bench, expected: Record) -> Difference:
    """Drafts looked up in prompt and answer; a single token in common is enough."""
    config = SpeculativeConfig("ngram", 4, prompt_lookup_max=3, prompt_lookup_min=1, adaptive=False)
    return _drafted(bench, expected, config)


def draft_model(bench: Bench, expected: Record) -> Difference:
    """Drafts of a model that mostly agrees."""
    config = SpeculativeConfig("draft_model", 3, model="the same, shaken", adaptive=False)
    return _drafted(bench, expected, config, draft=shaken(bench.model))


def right_and_wrong(bench: Bench, expected: Record) -> Difference:
    """Drafts that are right up to a place which wanders, so that every number of them is accepted."""
    config = SpeculativeConfig("ngram", 5, adaptive=False)
    return _drafted(bench, expected, config, proposer=RightAndWrong(expected))


def as_given(bench: Bench, expected: Record) -> Difference:
    """Drafts as the user configured them."""
    assert bench.speculation is not None
    return _drafted(bench, expected, bench.speculation, draft=bench.draft, must_draft=False)


def _drafted(
    bench: Bench,
    expected: Record,
    config: SpeculativeConfig,
    *,
    draft: Model | None = None,
    proposer: Proposer | None = None,
    must_draft: bool = True,
) -> Difference:
    with bench.engine(max_num_seqs=BATCH, speculative_config=config, draft=draft) as engine:
        speculation = engine.speculation
        assert speculation is not None
        if proposer is not None:
            speculation.proposer = proposer
        difference = compare(expected, run(engine, bench.prompts, bench.generated, stagger=3))
        difference += compare(expected, run(engine, bench.few, bench.generated))
        if must_draft and speculation.drafted_tokens == 0:
            raise InternalError("the scenario was to draft tokens and did not")
        return difference


def shaken(model: Model) -> Model:
    """A model with the same weights but for its last norm: it says the same often, not always, and takes no memory."""
    weight = model.vectors["final_norm"]
    factors = np.random.default_rng(1).uniform(0.7, 1.3, weight.shape).astype(np.float32)
    return replace(model, vectors={**model.vectors, "final_norm": weight * factors})


@dataclass
class RightAndWrong:
    """A proposer that knows the answers and errs on purpose, at another place each time, or not at all."""

    expected: Record
    free: bool = True
    seconds: float = 0.0

    def propose(self, limits: Mapping[Sequence, int]) -> dict[Sequence, list[int]]:
        """See `Proposer`."""
        proposals = {}
        for sequence, limit in limits.items():
            rows = self.expected[tuple(sequence.tokens[: sequence.prompt_length])]
            made = sequence.generated
            proposal = [int(row.argmax()) for row in rows[made : made + limit]]
            wrong = (3 * made + sequence.prompt_length) % (limit + 2)
            if wrong < len(proposal):
                proposal[wrong] = (proposal[wrong] + 1) % 97
            proposals[sequence] = proposal
        return proposals

    def forget(self, sequence: Sequence) -> None:
        """Nothing is kept."""

    def close(self) -> None:
        """Nothing is held."""
