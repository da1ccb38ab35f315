"""How much is drafted, and what is asked for: adaptive lengths, and configs that cannot be meant."""

from __future__ import annotations

from dataclasses import replace

import pytest

from drafts import GREEDY, MakeEngine, plain, prompt, scripted, transcripts
from kvist.config import EngineConfig, SpeculativeConfig
from kvist.errors import UnknownNameError, UsageError
from kvist.models.load import Model


@pytest.fixture
def steady_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps that cost what is assumed before any was timed: a row and six rows besides."""
    monkeypatch.setattr("kvist.engine.speculative.plan.StepCost.note", lambda self, rows, seconds: None)


def test_proposals_that_keep_failing_stop_within_a_few_rows(make_engine: MakeEngine, steady_costs: None) -> None:
    request = (prompt(20), replace(GREEDY, max_tokens=400))
    engine = scripted(make_engine, [request], lambda number: 0, drafts=8, adaptive=True)
    assert transcripts(engine, [request]) == plain(make_engine, [request])
    assert 0 < engine.speculation.drafted_tokens <= 4


def test_a_text_that_begins_to_repeat_is_found_out_without_a_row(make_engine: MakeEngine, steady_costs: None) -> None:
    request = (prompt(20), replace(GREEDY, max_tokens=400))
    engine = scripted(make_engine, [request], lambda number: 0 if number < 100 else None, drafts=8, adaptive=True)
    (found,) = transcripts(engine, [request])
    assert [found] == plain(make_engine, [request])
    wasted = engine.speculation.drafted_tokens - engine.speculation.accepted_tokens
    assert wasted <= 4
    assert engine.steps <= 100 + 300 // 9 + 6  # from then on nine tokens a step, but for the first few


def test_a_draft_model_that_fails_is_asked_less_and_less(
    make_engine: MakeEngine, tiny_model: Model, steady_costs: None
) -> None:
    request = (prompt(20), replace(GREEDY, max_tokens=400))
    engine = scripted(make_engine, [request], lambda number: 0, drafts=8, adaptive=True)
    engine.speculation.proposer.free = False
    assert transcripts(engine, [request]) == plain(make_engine, [request])
    assert engine.speculation.proposer.asked <= 12  # a few at first, then after 16, 32, 64, 128 ... steps


def test_a_full_batch_drafts_less_than_a_single_sequence(make_engine: MakeEngine, steady_costs: None) -> None:
    def drafted(sequences: int) -> float:
        requests = [(prompt(20, seed), replace(GREEDY, max_tokens=120)) for seed in range(sequences)]
        engine = scripted(make_engine, requests, lambda number: number // sequences % 2, adaptive=True, pages=200)
        assert transcripts(engine, requests) == plain(make_engine, requests)
        return engine.speculation.drafted_tokens / sequences

    assert drafted(1) > 2 * drafted(16)


# --- config
# ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "ngrams"}, "did you mean ngram"),
        ({"method": "medusa"}, "known are draft_model, ngram"),
        ({}, "names no method: give one of ngram, draft_model"),
        ({"method": "ngram", "num_speculative_token": 4}, "did you mean num_speculative_tokens"),
        ({"method": "ngram", "num_speculative_tokens": 0}, "num_speculative_tokens .* is 0: give a whole number, 1 to 64"),
        ({"method": "ngram", "num_speculative_tokens": "8"}, "is '8'"),
        ({"method": "ngram", "prompt_lookup_max": 2.0}, "prompt_lookup_max .* is 2.0"),
        ({"method": "ngram", "prompt_lookup_min": True}, "prompt_lookup_min .* is True"),
        ({"method": "ngram", "prompt_lookup_max": 2, "prompt_lookup_min": 3}, "prompt_lookup_min 3 .* above prompt_lookup_max 2"),
        ({"method": "ngram", "model": "x"}, "'ngram' takes no model"),
        ({"method": "draft_model"}, "'draft_model' needs a model"),
        ({"method": "draft_model", "model": 3}, "'draft_model' needs a model"),
        ({"method": "ngram", "adaptive": 1}, "adaptive .* is 1"),
    ],
)  # fmt: skip
def test_what_cannot_be_meant_is_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        EngineConfig.from_options({"speculative_config": options})


def test_configs_that_can_be_meant() -> None:
    made = EngineConfig.from_options({"speculative_config": {"method": "ngram"}})
    assert made.speculative_config == SpeculativeConfig("ngram")
    assert made.speculative_config.drafts == 8
    assert SpeculativeConfig("draft_model", model="x").drafts == 4
    assert EngineConfig.from_options({"speculative_config": None}).speculative_config is None
    assert EngineConfig(speculative_config=SpeculativeConfig("ngram", 3)).speculative_config.drafts == 3
    with pytest.raises(UsageError, match="give a SpeculativeConfig"):
        EngineConfig(speculative_config={"method": "ngram"})
    with pytest.raises(UsageError, match="speculative_config needs the cache, and enable_cache is off"):
        EngineConfig.from_options({"speculative_config": {"method": "ngram"}, "enable_cache": False})
    with pytest.raises(UnknownNameError):
        EngineConfig.from_options({"speculative": "ngram"})
