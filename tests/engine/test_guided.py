"""Guided answers on a tiny model, with guides that are a few lines of Python: what may not follow is never chosen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drafts import Scripted, prompt
from kvist.config import SpeculativeConfig
from kvist.engine.engine import Engine
from kvist.engine.guide import Bits, masks
from kvist.engine.params import SamplingParams, TokenOutput
from kvist.engine.sampler import Row, Sampler
from kvist.engine.sampling.alterations import Alterations
from kvist.engine.sampling.masks import masked
from kvist.errors import UsageError
from kvist.kernels.choosing import Changes
from kvist.kernels.reference_choosing import ReferenceChooser, changed
from kvist.structured import StructuredOutputs

VOCAB, END = 300, 299
GREEDY = SamplingParams(temperature=0.0, max_tokens=40)
DRAWN = SamplingParams(temperature=0.9, top_k=60, top_p=0.95, seed=11, max_tokens=40)


@dataclass
class Wheel:
    """What may follow depends on the sum of all tokens; after `length` of them only the end may. Broken at `breaks`."""

    length: int = 30
    breaks: int = 1000
    taken: list[int] = field(default_factory=list)
    ended: bool = False
    failure: str | None = None

    def allowed(self, tokens: Sequence[int]) -> list[int]:
        if len(tokens) >= self.length:
            return [END]
        return [token for token in range(END) if (token + sum(tokens)) % 7 == 0]

    def mask(self) -> Bits:
        self.failure = "broken" if len(self.taken) >= self.breaks else None
        bits = np.zeros(320, np.uint8)
        bits[self.allowed(self.taken)] = 1
        return np.packbits(bits, bitorder="little").view(np.uint32)

    def accept(self, token: int) -> bool:
        if self.ended or token not in self.allowed(self.taken):
            return False
        self.taken.append(token)
        self.ended = token == END
        return True

    def fork(self) -> Wheel:
        return Wheel(self.length, self.breaks, list(self.taken), self.ended)


Request = tuple[list[int], SamplingParams, Wheel | None]
REQUESTS: list[Request] = [
    (prompt(30, 1), GREEDY, Wheel()),
    (prompt(1, 2), DRAWN, Wheel(12)),
    (prompt(17, 3), replace(DRAWN, seed=5, max_tokens=9), Wheel()),
    (prompt(40, 4), replace(GREEDY, ignore_eos=True), None),
    (prompt(16, 5), replace(DRAWN, repetition_penalty=1.3, logit_bias={7: 5.0, 8: 50.0}), Wheel(25)),
    (prompt(30, 6), replace(GREEDY, min_tokens=20, presence_penalty=0.5), Wheel(25)),
]


def run(engine: Engine, requests: Sequence[Request]) -> list[list[TokenOutput]]:
    """All together; the outputs of each."""
    found: dict[str, list[TokenOutput]] = {}
    for ids, params, guide in requests:
        found[engine.submit(ids, params, guide=None if guide is None else guide.fork())] = []
    while engine.has_work:
        for output in engine.step():
            found[output.request_id].append(output)
    return list(found.values())


def told(outputs: Sequence[TokenOutput]) -> list[tuple[int, int | None, str | None, int | str | None]]:
    return [(one.index, one.token_id, one.finish_reason, one.stop_reason) for one in outputs]


def alone(make_engine, requests: Sequence[Request]) -> list[list[tuple]]:
    return [told(run(make_engine(), [request])[0]) for request in requests]


def test_every_token_may_follow_and_is_the_best_of_those(make_engine) -> None:
    engine, rows = make_engine(), []
    engine.observe = lambda request, position, logits: rows.append(logits.copy())
    outputs = run(engine, [(prompt(30), GREEDY, Wheel())])[0]
    tokens, wheel = [output.token_id for output in outputs], Wheel()
    assert tokens[-1] == END and len(tokens) == 31
    assert not all(int(row.argmax()) == token for row, token in zip(rows, tokens, strict=True)), "the guide did nothing"
    for i, (row, token) in enumerate(zip(rows, tokens, strict=True)):
        allowed = wheel.allowed(tokens[:i])
        assert token == max(allowed, key=lambda one: (row[one], -one))
    assert [output.finish_reason for output in outputs] == [None] * 30 + ["stop"]


def test_alone_and_in_a_batch_and_again_from_the_cache(make_engine) -> None:
    expected, engine = alone(make_engine, REQUESTS), make_engine()
    for _ in range(2):
        assert [told(outputs) for outputs in run(engine, REQUESTS)] == expected
    assert engine.manager.counters.prefix_hits > 0
    assert expected[0][-1][2] == "stop" and expected[2][-1][2] == "length" and len(expected[2]) == 9
    assert len(expected[1]) == 13


def test_after_preemptions(make_engine) -> None:
    requests = [(prompt(20, seed), replace(DRAWN, seed=seed), Wheel(35)) for seed in range(5)]
    engine = make_engine(pages=9)
    assert [told(outputs) for outputs in run(engine, requests)] == alone(make_engine, requests)
    assert engine.scheduler.preemptions > 0


@pytest.mark.parametrize("wrong", [None, 0, 2, 5])
@pytest.mark.parametrize("breaks", [1000, 10])
def test_drafts_change_nothing(make_engine, wrong: int | None, breaks: int) -> None:
    """Right ones, wrong ones, and ones that the guide does not let follow, as those of a model that knows no guide."""
    requests = [(ids, params, guide and replace(guide, breaks=breaks)) for ids, params, guide in REQUESTS]
    expected = alone(make_engine, requests)
    answers = {
        tuple(ids): [token for _, token, *_ in one if token is not None]
        for (ids, *_), one in zip(requests, expected, strict=True)
    }
    engine = make_engine(speculative_config=SpeculativeConfig("ngram", 6, adaptive=False))
    engine.speculation.proposer = Scripted(answers, lambda number: wrong)
    assert [told(outputs) for outputs in run(engine, requests)] == expected
    assert engine.speculation.drafted_tokens > 0
    assert (engine.speculation.accepted_tokens > 0) == (wrong != 0)
    if breaks == 10:
        assert [one[-1][2:] for one in expected].count(("abort", "broken")) == 4


def test_the_drafts_of_a_repeating_prompt_change_nothing(make_engine) -> None:
    requests = [(prompt(25, seed) * 2, params, Wheel()) for seed in (1, 2) for params in (GREEDY, DRAWN)]
    engine = make_engine(speculative_config=SpeculativeConfig("ngram", 6, prompt_lookup_min=1, adaptive=False))
    assert [told(outputs) for outputs in run(engine, requests)] == alone(make_engine, requests)
    assert engine.speculation.drafted_tokens > 0


def test_branches_have_guides_of_their_own(make_engine) -> None:
    outputs = run(make_engine(), [(prompt(20), replace(DRAWN, n=4), Wheel(15))])[0]
    answers = [[one.token_id for one in outputs if one.index == index] for index in range(4)]
    assert len({tuple(answer) for answer in answers}) == 4
    for answer in answers:
        wheel = Wheel(15)
        assert all(wheel.accept(token) for token in answer) and wheel.ended
    assert answers[0] == [one.token_id for one in run(make_engine(), [(prompt(20), DRAWN, Wheel(15))])[0]]


def test_an_answer_that_is_complete_ends_whatever_else_is_asked(make_engine) -> None:
    """min_tokens holds the end back, ignore_eos does not look for it, a bias is against it: nothing else may follow."""
    for more in ({"min_tokens": 20}, {"ignore_eos": True}, {"logit_bias": {END: -100.0}}, {"stop_token_ids": [END], "min_tokens": 9}):
        outputs = run(make_engine(), [(prompt(20), replace(GREEDY, **more), Wheel(6))])[0]
        assert len(outputs) == 7 and outputs[-1].token_id == END
        assert (outputs[-1].finish_reason, outputs[-1].stop_reason) == ("stop", END if "stop_token_ids" in more else None)


def test_log_probabilities_are_the_models_own(make_engine) -> None:
    rows: list[np.ndarray] = []
    engine = make_engine()
    engine.observe = lambda request, position, logits: rows.append(logits.copy())
    outputs = run(engine, [(prompt(20), replace(GREEDY, logprobs=2), Wheel(5))])[0]
    ranks = []
    for row, output in zip(rows, outputs, strict=True):
        own = output.logprobs[0]
        assert own.token_id == output.token_id
        assert own.rank == 1 + int((row > row[own.token_id]).sum())
        ranks.append(own.rank)
    assert max(ranks) > 1


def test_a_guide_that_fails_ends_its_answer_alone_and_says_why(make_engine) -> None:
    engine = make_engine()
    broken, other = run(engine, [(prompt(20), GREEDY, Wheel(breaks=5)), (prompt(25, 2), GREEDY, Wheel())])
    assert told(broken)[-1] == (0, None, "abort", "broken") and len(broken) == 6
    assert told(other) == told(run(make_engine(), [(prompt(25, 2), GREEDY, Wheel())])[0])
    at_once = run(engine, [(prompt(20), replace(DRAWN, n=3), Wheel(breaks=0))])[0]
    assert told(at_once) == [(index, None, "abort", "broken") for index in range(3)]
    assert not engine.has_work and not engine.manager.tables


def test_structured_outputs_without_a_guide_are_refused(make_engine) -> None:
    engine = make_engine()
    with pytest.raises(UsageError, match="need a guide"):
        engine.submit(prompt(5), replace(GREEDY, structured_outputs=StructuredOutputs(regex="a")))
    assert not engine.has_work


def test_masks_stop_at_a_draft_that_may_not_follow_and_leave_the_guide_as_it_was() -> None:
    wheel = Wheel(4)
    right = [7, 0, 14]
    for drafts, count in ((right, 4), ([7, 1, 14], 2), ([1], 1), ([], 1), ([*right, 0, END, END], 5)):
        found = masks(wheel, drafts)
        assert len(found) == count and wheel.taken == []
        for i, mask in enumerate(found):
            bits = np.unpackbits(mask.view(np.uint8), bitorder="little")
            assert np.nonzero(bits)[0].tolist() == wheel.allowed(drafts[:i])
    assert masks(Wheel(breaks=0), right) == [] and len(masks(Wheel(breaks=2), right)) == 2


@settings(max_examples=100, deadline=None, derandomize=True)
@given(allowed=st.sets(st.integers(0, 69), min_size=1), held=st.sets(st.integers(0, 69), max_size=4), seed=st.integers(0, 999))
def test_a_row_is_masked_by_the_book(allowed: set[int], held: set[int], seed: int) -> None:
    logits = np.random.RandomState(seed).standard_normal(70).astype(np.float32)
    kept, bits = logits.copy(), np.zeros(96, np.uint8)
    bits[list(allowed)] = bits[70:] = 1  # what stands behind the row means nothing
    mask = np.packbits(bits, bitorder="little").view(np.uint32)
    changes = Changes(np.array([*held, 3], np.int64), np.array([0.0] * len(held) + [2.0], np.float32), len(held), 1, 1.0, 0.0, 0.0)
    found = changed(*masked(logits, mask, changes))  # type: ignore[arg-type]
    left = allowed - held or allowed
    for token in range(70):
        expected = logits[token] + np.float32(2.0 * (token == 3)) if token in left else -np.inf
        assert found[token] == expected
    assert np.array_equal(logits, kept) and masked(logits, mask, None)[1] is None


def test_each_way_to_choose_is_the_plain_choosers_way_on_the_masked_row() -> None:
    logits = np.random.RandomState(3).standard_normal(VOCAB).astype(np.float32)
    wheel = Wheel()
    masked_row = np.where(np.isin(np.arange(VOCAB), wheel.allowed([])), logits, -np.inf).astype(np.float32)
    sampler = Sampler(ReferenceChooser())
    for more in ({"temperature": 0.0}, {}, {"top_k": 3}, {"top_p": 0.3}, {"min_p": 0.4}, {"typical_p": 0.5}, {"repetition_penalty": 1.2}):
        params = SamplingParams(**more)  # type: ignore[arg-type]
        alterations = Alterations(params, (7, 14), frozenset([END])) if Alterations.wanted(params) else None
        for seed in range(30):
            row = Row(logits, int(logits.argmax()), params, seed, 4, alterations, (), wheel.mask())
            (token,) = sampler.choose([row])
            (expected,) = sampler.choose([Row(masked_row, -1, params, seed, 4, alterations)])
            assert token == expected and token in wheel.allowed([])
