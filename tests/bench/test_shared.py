"""Requests of which half begin alike: what is counted of them, by hand."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kvist import LLM
from kvist.assemble import assemble
from kvist.bench.roofline import Roofline, cost_of
from kvist.bench.shared import Record, Work, serve, serve_tight
from kvist.bench.workloads import Setting
from kvist.engine.engine import Engine
from tiny import MODELS, write_folder

PAGE = 3 * 2 * 2 * 16 * 16 * 4  # 3 layers, K and V, 2 heads of 16, 16 slots, float32


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(replace(MODELS["llama"], positions=2560), tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture
def llm(folder: Path) -> Iterator[LLM]:
    with LLM(folder, threads=2, kv_cache_memory_bytes=2048 * PAGE) as made:
        yield made


def setting(llm: LLM, repeats: int = 1) -> Setting:
    return Setting(llm.engine, cost_of(llm.model, llm.engine), Roofline(llm.backend.team, 1 << 18), repeats)


def test_the_work_is_what_the_name_says() -> None:
    work = Work.drawn()
    assert work == Work.drawn()
    assert len(work.lengths) == len(work.answers) == 64
    apart, alike = work.lengths[::2], work.lengths[1::2]
    assert min(apart) >= 16 and min(alike) >= 1016 and max(apart + alike) <= 2000
    assert min(apart) < 32 and max(apart + alike) > 1900  # all of the range is used
    assert min(work.answers) >= 16 and max(work.answers) <= 128
    assert work.slots == sum(work.lengths) + sum(work.answers) - 31 * 1000


def test_every_second_prompt_begins_alike_and_no_repetition_as_another(llm: LLM) -> None:
    work = Work((20, 60, 30, 70), (2, 2, 2, 2), shared=40)
    first, again = (work.prompts(setting(llm), repeat) for repeat in (0, 1))
    assert [len(prompt) for prompt in first] == [20, 60, 30, 70]
    assert first[1][:40] == first[3][:40] and first[1][40:44] != first[3][40:44]
    assert first[0][:8] != first[2][:8] != first[1][:8]
    assert all(one[:8] != other[:8] for one, other in zip(first, again, strict=True))


def test_hits_tokens_and_gaps_as_by_hand(llm: LLM) -> None:
    work = Work((20, 60, 30, 70), (3, 5, 4, 2), shared=40)
    found = serve(setting(llm, repeats=2), "shared_64", work)
    assert found.hit_rate == 40 / (20 + 60 + 30 + 70)  # the second of those that begin alike waited for the first
    assert found.preemptions == 0 and found.worst_gap_steps is None  # no step had 512 tokens
    assert found.seconds is not None and found.tokens_per_s == 14 / found.seconds
    assert None not in (found.ttft_p50, found.itl_p50) and found.ttft_p50 <= found.ttft_p99 <= max(found.samples)
    assert found.itl_p50 <= found.itl_p99 < max(found.samples)
    record = Record()
    record.run(llm.engine, work.prompts(setting(llm), 5), work.answers)
    assert (len(record.ttft), len(record.gaps)) == (4, 10)


def test_wasted_slots_as_by_hand(llm: LLM) -> None:
    found = serve(setting(llm), "shared_64", Work((20,), (2,)))  # 20 tokens in 2 pages, then the last token ends it
    assert found.wasted_share == 12 / 32


def test_full_steps_are_what_gaps_are_told_in(llm: LLM) -> None:
    found = serve(setting(llm), "shared_64", Work((20, 2000), (9, 2), shared=0))  # one answers while the other is read
    assert found.worst_gap_steps is not None and found.worst_gap_steps >= 1


def test_a_small_pool_preempts(folder: Path) -> None:
    work = Work((60, 60, 60, 60), (40, 40, 40, 40), shared=0)
    with LLM(folder, threads=2, kv_cache_memory_bytes=12 * PAGE) as llm:
        found = serve(setting(llm), "shared_64", work)
        assert found.preemptions == llm.engine.scheduler.preemptions > 0
        assert f"{found.preemptions} preempted" in found.note
    with LLM(folder, threads=2, kv_cache_memory_bytes=32 * PAGE) as llm:
        assert serve(setting(llm), "shared_64", work).preemptions == 0


def test_the_tight_pool_holds_two_fifths_and_is_given_back(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    work, made = Work((400, 400, 390, 410), (30, 30, 30, 30), shared=0), list[Engine]()

    def assembling(*given: Any) -> Engine:
        made.append(assemble(*given))
        return made[0]

    monkeypatch.setattr(Work, "drawn", lambda: work)
    monkeypatch.setattr("kvist.bench.shared.assemble", assembling)
    found = serve_tight(setting(llm), llm, "shared_64_tight")
    assert found.preemptions is not None and found.preemptions > 0
    assert made[0].manager.stats().total == 2 * work.slots // 5 // 16
    assert llm.engine.scheduler.preemptions == 0
