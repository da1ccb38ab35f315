"""Branches: one prompt computed once, pages shared copy on write, and each answer what it would be alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

import tiny
from drafts import NGRAM, MakeEngine, Scripted, prompt
from kvist.assemble import assemble
from kvist.config import EngineConfig
from kvist.engine.engine import Engine
from kvist.engine.params import SamplingParams, TokenOutput
from kvist.engine.sampling.draws import branch_seed
from kvist.errors import RequestError
from kvist.events import EventKind
from kvist.kernels.cpu.backend import CpuBackend
from kvist.models.load import load_model

DRAWN = SamplingParams(temperature=1.2, seed=3, max_tokens=24, ignore_eos=True, n=5, logprobs=2)
ALTERED = replace(
    DRAWN, repetition_penalty=1.3, presence_penalty=0.4, frequency_penalty=0.3, logit_bias={7: 2.5, 9: -50.0},
    stop_token_ids=[7], min_tokens=5, top_p=0.97,
)  # fmt: skip

Answer = list[TokenOutput]


def run(engine: Engine, requests: list[tuple[list[int], SamplingParams]]) -> list[dict[int, Answer]]:
    """Run requests together; of each the outputs by branch, their metrics (which tell of time) left out."""
    found: dict[str, dict[int, Answer]] = {engine.submit(ids, params): {} for ids, params in requests}
    renamed = {name: f"request {i}" for i, name in enumerate(found)}
    while engine.has_work:
        for output in engine.step():
            plain = replace(output, request_id=renamed[output.request_id], metrics=None)  # type: ignore[arg-type]
            found[output.request_id].setdefault(output.index, []).append(plain)
    return list(found.values())


def tokens(answer: Answer) -> list[int]:
    return [output.token_id for output in answer if output.token_id is not None]


def content(answer: Answer) -> list[object]:
    """All that an answer says, whatever request and branch it is."""
    return [(o.token_id, o.finish_reason, o.stop_reason, o.logprobs, o.cumulative_logprob) for o in answer]


def alone(make_engine: MakeEngine, ids: list[int], params: SamplingParams, branch: int) -> Answer:
    """A branch as a request of its own."""
    assert params.seed is not None
    own = replace(params, seed=branch_seed(params.seed, branch), n=1)
    return run(make_engine(enable_prefix_caching=False), [(ids, own)])[0][0]


@pytest.mark.parametrize("params", [DRAWN, ALTERED])
@pytest.mark.parametrize("length", [1, 15, 16, 17, 50])
def test_each_branch_is_a_request_alone(make_engine: MakeEngine, params: SamplingParams, length: int) -> None:
    expected = [content(alone(make_engine, prompt(length), params, i)) for i in range(params.n)]
    assert len({tuple(tokens(alone(make_engine, prompt(length), params, i))) for i in range(params.n)}) == params.n
    for caching in (True, False):
        engine = make_engine(enable_prefix_caching=caching)
        (found,) = run(engine, [(prompt(length), params)])
        assert [content(found[i]) for i in range(params.n)] == expected
        assert engine.manager.stats().live == 0


def test_the_first_branch_is_the_request_without_branches(make_engine: MakeEngine) -> None:
    (one,) = run(make_engine(), [(prompt(20), replace(DRAWN, n=1))])
    (five,) = run(make_engine(), [(prompt(20), DRAWN)])
    assert content(one[0]) == content(five[0])


def test_eight_branches_of_a_thousand_tokens_share_their_pages(tmp_path: Path, one_thread: CpuBackend) -> None:
    """1,000 tokens are 62 full pages and 8 slots of a 63rd: 8 branches hold 62 + 8 pages, not 8 x 63 = 504."""
    model = load_model(tiny.write_folder(replace(tiny.MODELS["llama"], positions=1100), tmp_path), one_thread)
    engine = assemble(model, EngineConfig(kv_cache_memory_bytes=8 << 20), one_thread)
    ids = [(i * i * 7 + i) % 300 for i in range(1000)]
    engine.submit(ids, SamplingParams(temperature=1.0, seed=1, n=8, max_tokens=10, ignore_eos=True))
    while not (outputs := engine.step()):
        assert engine.manager.stats().live <= 63
    assert len(outputs) == 8
    assert engine.manager.stats().live == 63  # every branch has its first token, and none has written one
    assert engine.manager.counters.pages_copied == 0
    engine.step()
    assert engine.manager.stats().live == 62 + 8
    assert engine.manager.counters.pages_copied == 7  # who writes last keeps the page
    for _ in range(7):  # the slots 8..15 of that page are filled
        engine.step()
        assert engine.manager.stats().live == 62 + 8
    assert all(output.finish_reason == "length" for output in engine.step())
    assert engine.manager.stats().live == 0
    assert engine.runner.kv_projections == 1000 + 8 * 9  # the prompt once
    assert engine.manager.counters.pages_copied == 7
    engine.manager.check_integrity()
    engine.close()


@pytest.mark.parametrize("caching", [True, False])
def test_branches_that_are_preempted_are_the_same(make_engine: MakeEngine, caching: bool) -> None:
    """Eight pages for five branches of a page and a half, and a neighbour: branches are computed again, alone."""
    requests = [(prompt(24, 1), replace(DRAWN, max_tokens=40)), (prompt(9, 2), replace(ALTERED, n=2, max_tokens=40))]
    engine = make_engine(pages=8, enable_prefix_caching=caching)
    with engine.events.subscribe(1 << 16) as subscription:
        found = run(engine, requests)
        kinds = [event.kind for event in subscription.drain()]
    assert kinds.count(EventKind.REQUEST_PREEMPTED) > 2
    assert kinds.count(EventKind.REQUEST_QUEUED) == kinds.count(EventKind.REQUEST_FINISHED) == 2
    for (ids, params), branches in zip(requests, found, strict=True):
        for i in range(params.n):
            assert content(branches[i]) == content(alone(make_engine, ids, params, i))


@pytest.mark.parametrize("seqs", [1, 2, 3])
def test_branches_wait_where_too_many_would_run(make_engine: MakeEngine, seqs: int) -> None:
    engine = make_engine(max_num_seqs=seqs, max_num_batched_tokens=7)
    engine.submit(prompt(30), DRAWN, request_id="all")
    found: dict[int, list[int]] = {}
    while engine.has_work:
        for output in engine.step():
            found.setdefault(output.index, []).append(output.token_id or 0)
        assert len(engine.scheduler.running) <= seqs
    assert [found[i] for i in range(5)] == [tokens(alone(make_engine, prompt(30), DRAWN, i)) for i in range(5)]


def test_branches_stand_where_their_request_arrived(make_engine: MakeEngine) -> None:
    """Behind who came before and before who came after: the youngest is preempted first."""
    engine = make_engine(max_num_seqs=6)
    names = [
        engine.submit(prompt(9, i), replace(DRAWN, n=n), request_id=name)
        for i, (name, n) in enumerate([("a", 1), ("b", 3), ("c", 1)])
    ]
    engine.step()
    assert [(s.request_id, s.index) for s in engine.scheduler.running] == [
        ("a", 0),
        ("b", 0),
        ("b", 1),
        ("b", 2),
        ("c", 0),
    ]
    for name in names:
        engine.cancel(name)


def test_the_uncached_baseline_branches_too(make_engine: MakeEngine) -> None:
    params = replace(ALTERED, n=3, max_tokens=8)
    (found,) = run(make_engine(enable_cache=False), [(prompt(20), params)])
    assert [content(found[i]) for i in range(3)] == [
        content(alone(make_engine, prompt(20), params, i)) for i in range(3)
    ]


@pytest.mark.parametrize("params", [DRAWN, ALTERED])
def test_drafts_change_nothing_of_branches(make_engine: MakeEngine, params: SamplingParams) -> None:
    """Looked up, and scripted to be right for the first branch (so wrong for others); a prompt of one token too."""
    for ids in (prompt(25) * 2, prompt(1), prompt(16)):
        expected = [content(alone(make_engine, ids, params, i)) for i in range(params.n)]
        for proposer in (None, Scripted({tuple(ids): tokens(alone(make_engine, ids, params, 0))})):
            engine = make_engine(speculative_config=NGRAM)
            assert engine.speculation is not None
            if proposer is not None:
                engine.speculation.proposer = proposer
            (found,) = run(engine, [(ids, params)])
            assert [content(found[i]) for i in range(params.n)] == expected
            assert proposer is None or engine.speculation.accepted_tokens > 10


def test_a_branch_that_ends_at_once_leaves_the_others(make_engine: MakeEngine) -> None:
    params = replace(DRAWN, max_tokens=6)
    firsts = [tokens(alone(make_engine, prompt(20), params, i))[0] for i in range(5)]
    for stop in set(firsts):
        (found,) = run(make_engine(), [(prompt(20), replace(params, stop_token_ids=[stop]))])
        for i, first in enumerate(firsts):
            assert (len(found[i]) == 1) == (first == stop) or stop in tokens(found[i])
            assert content(found[i]) == content(
                alone(make_engine, prompt(20), replace(params, stop_token_ids=[stop]), i)
            )
    (found,) = run(make_engine(), [(prompt(20), replace(params, max_tokens=1))])
    assert [tokens(found[i]) for i in range(5)] == [[first] for first in firsts]


@pytest.mark.parametrize("steps", range(6))
def test_cancelling_frees_all_branches(make_engine: MakeEngine, steps: int) -> None:
    engine = make_engine(max_num_batched_tokens=16)
    name = engine.submit(prompt(30), DRAWN)
    for _ in range(steps):
        engine.step()
    assert engine.cancel(name)
    assert not engine.has_work and not engine.cancel(name)
    assert engine.manager.stats().live == 0
    assert not engine.scheduler.running and not engine.scheduler.waiting


def test_metrics_count_all_branches(make_engine: MakeEngine) -> None:
    engine = make_engine()
    engine.submit(prompt(40), DRAWN)
    metrics = None
    while engine.has_work:
        for output in engine.step():
            metrics = output.metrics
    assert metrics is not None
    assert (metrics.prompt_tokens, metrics.cached_tokens, metrics.generated_tokens) == (40, 0, 5 * 24)
    assert metrics.computed_tokens == metrics.kv_projections == 40 + 5 * 23 == engine.runner.kv_projections


# --- what tokens are held to
# ---------------------------------------------------------------------------------------------


def test_min_tokens_holds_every_end_back(make_engine: MakeEngine) -> None:
    free = SamplingParams(temperature=0.0, max_tokens=20, ignore_eos=True)
    plain = tokens(run(make_engine(), [(prompt(10), free)])[0][0])
    stopping = replace(free, stop_token_ids=[plain[2]])
    first = run(make_engine(), [(prompt(10), stopping)])[0][0]
    assert tokens(first) == plain[: plain.index(plain[2]) + 1]
    assert (first[-1].finish_reason, first[-1].stop_reason) == ("stop", plain[2])
    for least in (1, 3, 9, 20):
        held = run(make_engine(), [(prompt(10), replace(stopping, min_tokens=least))])[0][0]
        assert plain[2] not in tokens(held)[:least] and len(held) >= least
    engine = make_engine()
    with pytest.raises(RequestError, match="min_tokens holds all stop tokens back"):
        engine.submit(prompt(10), replace(free, stop_token_ids=list(range(300)), min_tokens=1))


def test_the_models_own_end_is_no_stop_reason(make_engine: MakeEngine) -> None:
    free = SamplingParams(temperature=0.0, max_tokens=20)
    plain = tokens(run(make_engine(), [(prompt(10), free)])[0][0])
    for own, given, reason in (([plain[3]], [], None), ([], [plain[3]], plain[3]), ([plain[3]], [plain[3]], plain[3])):
        engine = make_engine()
        engine.limits = replace(engine.limits, eos_ids=frozenset(own))
        last = run(engine, [(prompt(10), replace(free, stop_token_ids=given))])[0][0][-1]
        assert (last.token_id, last.finish_reason, last.stop_reason) == (plain[3], "stop", reason)


def test_token_ids_that_the_model_does_not_have_are_refused(make_engine: MakeEngine) -> None:
    engine = make_engine()
    with pytest.raises(RequestError, match=r"logit_bias: token id 300 is not in this model's vocabulary of 300"):
        engine.submit(prompt(10), SamplingParams(logit_bias={299: 1.0, 300: 1.0}))
    with pytest.raises(RequestError, match=r"stop_token_ids: token id 999"):
        engine.submit(prompt(10), SamplingParams(stop_token_ids=[999]))
    assert not engine.has_work


def test_a_bias_forces_and_forbids(make_engine: MakeEngine) -> None:
    forced = SamplingParams(temperature=1.0, seed=1, max_tokens=8, ignore_eos=True, logit_bias={42: 100.0})
    assert tokens(run(make_engine(), [(prompt(10), forced)])[0][0]) == [42] * 8
    never = replace(forced, max_tokens=60, logit_bias=dict.fromkeys(range(290), -100.0))
    assert min(tokens(run(make_engine(), [(prompt(10), never)])[0][0])) >= 290


# --- log-probabilities
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"max_num_batched_tokens": 7}, {"pages": 8, "enable_prefix_caching": False}, {"enable_cache": False}])  # fmt: skip
def test_log_probabilities_are_the_same_bits_however_they_are_computed(
    make_engine: MakeEngine, options: dict[str, object]
) -> None:
    requests = [
        (prompt(n, n), SamplingParams(0.8, seed=n, max_tokens=12, ignore_eos=True, logprobs=4, prompt_logprobs=3))
        for n in (1, 2, 33, 40)
    ]
    expected = [run(make_engine(enable_prefix_caching=False), [request])[0] for request in requests]
    engine = make_engine(**options)
    for _ in range(2):  # the second time with the prompts in the cache
        found = run(engine, requests)
        for branches, own, (ids, _) in zip(found, expected, requests, strict=True):
            assert content(branches[0]) == content(own[0])
            assert branches[0][0].prompt_logprobs == own[0][0].prompt_logprobs
            assert len(own[0][0].prompt_logprobs or ()) == len(ids) - 1
            assert all(output.prompt_logprobs is None for output in branches[0][1:])
    if "pages" in options:
        assert engine.scheduler.preemptions > 0


def test_log_probabilities_of_prompt_and_answer_agree(make_engine: MakeEngine) -> None:
    """What an answer's tokens had, the same tokens have as part of a prompt: to the bit."""
    params = SamplingParams(0.9, seed=4, max_tokens=15, ignore_eos=True, logprobs=5)
    answer = run(make_engine(), [(prompt(20), params)])[0][0]
    longer = prompt(20) + tokens(answer)
    again = run(make_engine(), [(longer, replace(params, max_tokens=1, prompt_logprobs=5))])[0][0]
    assert (again[0].prompt_logprobs or ())[19:] == tuple(output.logprobs for output in answer)
    assert answer[-1].cumulative_logprob == sum(output.logprobs[0].logprob for output in answer)


def test_a_prompt_whose_logits_are_wanted_is_computed_and_says_so(make_engine: MakeEngine) -> None:
    engine = make_engine()
    plain = SamplingParams(0.0, max_tokens=4, ignore_eos=True)
    run(engine, [(prompt(40), plain)])
    for params, cached in ((plain, 32), (replace(plain, prompt_logprobs=0), 0), (plain, 32)):
        assert list(engine.stream(prompt(40), params))[-1].metrics.cached_tokens == cached


def test_a_long_prompt_is_read_in_parts(make_engine: MakeEngine) -> None:
    params = SamplingParams(0.0, max_tokens=2, ignore_eos=True, prompt_logprobs=1)
    whole = run(make_engine(), [(prompt(400), params)])[0][0]
    engine = make_engine()
    engine.submit(prompt(400), params)
    assert engine.step() == []  # 256 rows of logits a step
    assert engine.scheduler.running[0].computed == 256
    parts = list(engine.step())
    assert parts[0].prompt_logprobs == whole[0].prompt_logprobs
    engine.cancel(parts[0].request_id)
