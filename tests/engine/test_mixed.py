"""A small pool under random pressure, with requests of every kind: who finishes has what it would have had alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from drafts import NGRAM, MakeEngine, prompt
from kvist.engine.beams import BeamSearch
from kvist.engine.params import BeamSearchParams, SamplingParams

DRAWN = SamplingParams(temperature=1.1, seed=9, max_tokens=10, ignore_eos=True)
PARAMS: list[SamplingParams | BeamSearchParams] = [
    DRAWN,
    replace(DRAWN, n=3, top_p=0.9, logprobs=1),
    replace(DRAWN, n=2, repetition_penalty=1.4, frequency_penalty=0.5, min_tokens=4, stop_token_ids=list(range(0, 300, 7))),
    replace(DRAWN, temperature=0.0, presence_penalty=1.5, logit_bias={5: 3.0}),
    replace(DRAWN, max_tokens=2, logprobs=2, prompt_logprobs=1),
    BeamSearchParams(3, 6, ignore_eos=True),
    BeamSearchParams(2, 8, length_penalty=2.0, early_stopping=True, ignore_eos=True),
]  # fmt: skip
Key = tuple[int, int, int]
Told = list[object]


class Requests:
    """Requests of an engine, and what it told of each."""

    def __init__(self, engine: object) -> None:
        self.engine = engine
        self.told: dict[str, Told] = {}
        self.keys: dict[str, Key] = {}
        self.finished: set[str] = set()
        self._searches: dict[str, BeamSearch] = {}
        self._open: dict[str, int] = {}

    def submit(self, key: Key) -> str:
        kind, length, seed = key
        params = PARAMS[kind]
        if isinstance(params, BeamSearchParams):
            search = self.engine.submit_beams(prompt(length, seed), params)
            name, self._searches[search.request_id] = search.request_id, search
        else:
            name = self.engine.submit(prompt(length, seed), params)
        self.keys[name], self.told[name] = key, []
        self._open[name] = 1 if isinstance(params, BeamSearchParams) else params.n
        return name

    def step(self) -> None:
        for output in self.engine.step():
            name = output.request_id
            self.told[name].append(
                (output.index, output.token_id, output.finish_reason, output.logprobs,
                 output.cumulative_logprob, output.prompt_logprobs)
            )  # fmt: skip
            if output.finish_reason is not None:
                self._open[name] -= 1
                if not self._open[name]:
                    self.finished.add(name)
                    if name in self._searches:
                        self.told[name] = list(self._searches[name].finished)

    def by_branch(self, name: str) -> list[object]:
        """What was told, branch by branch: in which order branches get on is nobody's promise."""
        told = self.told[name]
        return told if name in self._searches else sorted(told, key=lambda one: one[0])  # type: ignore[index]


ALONE: dict[Key, list[object]] = {}


def alone(make_engine: MakeEngine, key: Key) -> list[object]:
    if key not in ALONE:
        requests = Requests(make_engine(enable_prefix_caching=False))
        name = requests.submit(key)
        while requests.engine.has_work:
            requests.step()
        ALONE[key] = requests.by_branch(name)
    return ALONE[key]


@pytest.mark.parametrize("speculation", [None, NGRAM])
@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_order_of_submits_steps_and_cancels_gives_what_each_has_alone(
    make_engine: MakeEngine, data: st.DataObject, speculation: object
) -> None:
    requests = Requests(
        make_engine(
            pages=data.draw(st.integers(3, 12)), max_num_seqs=data.draw(st.integers(1, 6)),
            max_num_batched_tokens=data.draw(st.sampled_from([1, 5, 16, 64])),
            enable_prefix_caching=data.draw(st.booleans()), speculative_config=speculation,
        )
    )  # fmt: skip
    engine = requests.engine
    for action in data.draw(
        st.lists(st.sampled_from(["submit", "submit", "step", "step", "step", "cancel"]), max_size=30)
    ):
        if action == "submit":
            kind, length = data.draw(st.integers(0, len(PARAMS) - 1)), data.draw(st.sampled_from([1, 15, 16, 17, 30]))
            requests.submit((kind, length, data.draw(st.integers(0, 1))))
        elif action == "cancel" and requests.told:
            engine.cancel(data.draw(st.sampled_from(sorted(requests.told))))
        else:
            requests.step()
        engine.manager.check_integrity()
        assert len(engine.scheduler.running) <= engine.limits.max_num_seqs
    for _ in range(20_000):
        if not engine.has_work:
            break
        requests.step()
    assert not engine.has_work
    for name in requests.finished:
        assert requests.by_branch(name) == alone(make_engine, requests.keys[name])
    assert engine.manager.stats().live == 0
    assert not engine.scheduler.running and not engine.scheduler.waiting
    engine.manager.check_integrity()
