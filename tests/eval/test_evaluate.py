"""A whole run on a tiny model: exact rows are exact, a stopped run goes on and says the same."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import tiny
from kvist import LLM
from kvist.errors import UnknownNameError, UsageError
from kvist.eval import evaluate
from kvist.eval.evaluate import Evaluation, rounds
from kvist.eval.method import FLOOR, REFERENCE, Method, methods, names
from kvist.eval.plan import FULL, QUICK, Plan
from kvist.eval.store import Store
from kvist.eval.text import documents

PLAN = Plan(tokens=40, documents=5, lengths=(), depths=10, seeds=1, contexts=(20, 80, 140))
TIMED = ("step_ms_intercept", "step_us_per_1k_tokens", "slope_to_f16", "slope_to_f16_interval", "steps")


def run(llm: LLM, folder: Path, store: Store, plan: Plan = PLAN, codecs: tuple[str, ...] = ("bf16",)) -> dict[str, Any]:
    silent = lambda what, done, total: None  # noqa: E731
    return Evaluation(llm, folder, methods(codecs), plan, store, silent).run("tiny").as_json()


def untimed(found: dict[str, Any]) -> str:
    """A report without what no two runs measure alike."""
    rows = [{key: value for key, value in row.items() if key not in TIMED} for row in found["methods"]]
    return json.dumps({**found, "methods": rows})


def test_a_report(llm: LLM, folder: Path) -> None:
    found = run(llm, folder, Store())
    exact, half, brain = found["methods"]
    assert [(row["codec"], row["policy"]) for row in found["methods"]] == [(c, "full") for c in ("f32", "f16", "bf16")]
    assert (exact["perplexity_change"], exact["kld_mean"], exact["kld_p999"], exact["top1"]) == (0, 0, 0, 1)
    assert exact["perplexity_change_interval"] == exact["kld_mean_interval"] == [0, 0]
    assert exact["perplexity"] == found["reference"]["perplexity"]
    assert 0 < half["kld_median"] < half["kld_mean"] < brain["kld_mean"] < brain["kld_p999"]
    assert half["kld_mean_interval"][0] < half["kld_mean"] < half["kld_mean_interval"][1]
    assert [row["bits_per_value"] for row in found["methods"]] == [32, 16, 16]
    assert [row["bytes_per_token"] for row in found["methods"]] == [768, 384, 384]  # 3 layers, K and V, 2 heads of 16
    assert exact["live_bytes_per_token"] == 768 * 48 / 40
    assert [row["step_ms_intercept"] > 0 for row in found["methods"]] == [True] * 3
    assert half["slope_to_f16"] == 1 and [step["context"] for step in brain["steps"]] == [20, 80, 140]
    assert brain["passkey"] is None and found["passkey_cells"] == 0
    assert found["reference"]["positions"] == 5 * 40 == sum(d["positions"] for d in found["text"]["documents"])
    for row in found["methods"]:
        (bucket,) = row["by_position"]
        assert (bucket["from"], bucket["to"], bucket["positions"]) == (0, 40, 200)
        assert bucket["kld_mean"] == pytest.approx(row["kld_mean"]) and bucket["top1"] == row["top1"]
        assert sum(domain["positions"] for domain in row["by_domain"]) == 200


def test_what_is_stored_is_not_measured_again(
    llm: LLM, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = replace(PLAN, lengths=(200,))
    assert run(llm, folder, Store(), replace(plan, seeds=0))["passkey_cells"] == 0
    with Store(tmp_path / "results") as store:
        first = run(llm, folder, store, plan)
    assert first["passkey_cells"] == 10
    for name in ("force", "retrieved", "timed"):
        monkeypatch.setattr(evaluate, name, None)  # calling it would fail
    with Store(tmp_path / "results") as store:
        assert json.dumps(run(llm, folder, store, plan)) == json.dumps(first)
        with pytest.raises(TypeError):
            run(llm, folder, store, replace(plan, tokens=41))
        monkeypatch.setattr(evaluate, "texts", lambda llm, contexts: documents(llm.tokenizer.encode, 1, contexts[-1]))
        with pytest.raises(TypeError):  # steps over another text
            run(llm, folder, store, plan)


class StoppedError(Exception):
    """Somebody stopped the run."""


def test_a_run_stopped_after_any_result_goes_on_to_the_same_report(
    llm: LLM, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluate, "SIDE_BY_SIDE", 2)
    plan = replace(PLAN, lengths=(200,))
    whole = untimed(run(llm, folder, Store(), plan))
    stops = 0
    path = tmp_path / "results"

    class Stopping(Store):
        left = 4

        def put(self, key: str, result: Any) -> None:
            if not self.left:
                raise StoppedError
            self.left -= 1
            super().put(key, result)

    while True:
        with Stopping(path) as store:
            try:
                found = run(llm, folder, store, plan)
                break
            except StoppedError:
                stops += 1
        with path.open("ab") as file:
            file.write(b'{"key": "torn')
    assert stops >= 4 and untimed(found) == whole


def test_another_model_or_page_size_is_another_result(llm: LLM, folder: Path, tmp_path: Path) -> None:
    with Store(tmp_path / "results") as store:
        run(llm, folder, store)
        before = (tmp_path / "results").stat().st_size
        other = tiny.write_folder(tiny.MODELS["llama-tied"], tmp_path / "other")
        with LLM(other, kv_cache_memory_bytes=8 << 20, threads=2) as second:
            found = run(second, other, store)
            assert untimed(found) == untimed(run(second, other, Store()))
        assert (tmp_path / "results").stat().st_size > 1.9 * before


def test_methods_together_or_in_halves_as_memory_has_it() -> None:
    one, two, three = Method("a"), Method("b"), Method("c")
    costs = {REFERENCE: 4, one: 2, two: 2, three: 2}
    every = (one, two, three)
    assert list(rounds(every, costs, 10**6)) == [(every, 16)]
    assert list(rounds(every, costs, 50)) == [(every, 5)]
    assert list(rounds(every, costs, 35)) == [((one,), 5), ((two, three), 4)]
    assert list(rounds(every, costs, 20)) == [((one,), 3), ((two,), 3), ((three,), 3)]
    assert list(rounds((one,), costs, 1)) == [((one,), 1)]


def test_names_of_methods() -> None:
    assert names("f16, k=int5,v=int4,bf16,k=f16, v=f32") == ["f16", "k=int5,v=int4", "bf16", "k=f16, v=f32"]
    assert methods(["bf16", "f16"]) == (REFERENCE, FLOOR, Method("bf16"))
    assert Method("f16").name == "f16" and Method("f16", "window:1024+4").name == "f16 window:1024+4"
    assert methods(["f16"], ["full", "window:64"]) == (REFERENCE, FLOOR, Method("f16", "window:64+4"))
    with pytest.raises(UnknownNameError, match="bf16"):
        methods(["f17"])
    with pytest.raises(UnknownNameError, match="window"):
        methods(["f16"], ["nonsense"])
    with pytest.raises(UsageError, match="auto"):
        methods(["auto"])


def test_plans_fit_the_model() -> None:
    assert FULL.within(8192) == FULL and QUICK.within(8192) == QUICK
    small = FULL.within(1100)
    assert (small.tokens, small.lengths, small.contexts) == (1100, (1000,), (250, 900))
    assert QUICK.asking(8192, 100, 3, 0) == replace(QUICK, tokens=100, documents=3, seeds=0)
    assert QUICK.asking(64, None, None, None) == QUICK.within(64)
    assert QUICK.within(64).tokens == 64
    assert len(QUICK.within(1024).contexts) == len(FULL.within(1024).contexts) == 2, "enough for a slope"
    with pytest.raises(UsageError, match="300 tokens"):
        QUICK.asking(256, 300, None, None)


def test_contexts_that_do_not_fit_the_memory_are_left_out(
    llm: LLM, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluate, "room", lambda: 768 * (80 + 2 * 48 * 3))  # bytes of a float32 position
    found = run(llm, folder, Store())
    assert found["plan"]["contexts"] == (20, 80)
    assert [[step["context"] for step in row["steps"]] for row in found["methods"]] == [[20, 80]] * 3


def test_documents_as_long_as_the_model_goes(llm: LLM, folder: Path) -> None:
    plan = Plan(tokens=256, documents=2, lengths=(256,), depths=10, seeds=1, contexts=(10, 256 - 48)).within(256)
    found = run(llm, folder, Store(), plan)
    assert found["reference"]["positions"] == 512 and found["passkey_cells"] == 10
    assert [step["context"] for step in found["methods"][0]["steps"]] == [10, 208]
