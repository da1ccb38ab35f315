"""What viewers are told adds up: who follows the changes knows what the engine knows."""

from __future__ import annotations

import random
from base64 import b64decode
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from kvist import LLM, SamplingParams
from kvist.engine.params import BeamSearchParams
from kvist.server import live_tracker
from kvist.server.history import RequestHistory, pages_held
from kvist.server.live_tracker import MOST_OWNERS, SEALED, Telling, Tracker
from tiny import MODELS, write_folder


class Viewer:
    """Keeps what it is told, as the page does."""

    def __init__(self, told: Telling) -> None:
        body = told.body
        assert body["type"] == "snapshot"
        self.pages = []
        for pool, pages in zip(body["pools"], body["pages"], strict=True):
            states = np.zeros(pool["total"], np.uint8)
            states[: pages["touched"]] = np.frombuffer(b64decode(pages["states"]), np.uint8)
            self.pages.append(states)
        self.sequences: dict[int, list[list[int]]] = {}
        self.numbers: dict[int, dict[str, Any]] = {}
        self.hits = self.evicted = 0
        self._take(told)

    def apply(self, told: Telling) -> None:
        body = told.body
        assert body["type"] == "delta"
        for states, changed in zip(self.pages, body["pages"], strict=True):
            for page, byte in zip(changed[::2], changed[1::2], strict=True):
                states[page] = byte
        for number in body["gone"]:
            del self.sequences[number], self.numbers[number]
        self.hits += sum(len(pages) for _, pages in body["hits"])
        self.evicted += sum(len(pages) for _, pages in body["evicted"])
        self._take(told)

    def _take(self, told: Telling) -> None:
        self.standing = told.body["pools"]
        for _, one in told.sequences:
            known = self.sequences.get(one["id"], [])
            self.sequences[one["id"]] = [
                [*(known[i] if i < len(known) else [])[:start], *pages] for i, (start, pages) in enumerate(one["pages"])
            ]
            self.numbers[one["id"]] = one


def agrees(viewer: Viewer, llm: LLM, tracker: Tracker) -> None:
    for states, ledger in zip(viewer.pages, llm.engine.manager.ledgers, strict=True):
        refs, index = ledger.allocator.refs, ledger.index
        truth = [min(owners, MOST_OWNERS) | (SEALED if page in index else 0) for page, owners in enumerate(refs)]
        assert states.tolist() == truth
    scheduler = llm.engine.scheduler
    truth_by_number = {
        tracker.number(s): [] if s.table is None else s.table.groups for s in [*scheduler.running, *scheduler.waiting]
    }
    assert viewer.sequences == truth_by_number
    for s in [*scheduler.running, *scheduler.waiting]:
        told = viewer.numbers[tracker.number(s)]
        assert (told["generated"], told["computed"]) == (s.generated, s.computed)
        assert told["state"] == ("waiting" if s.table is None else "running")


@pytest.fixture(scope="module", params=["llama", "gemma2"])
def small(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    """So few pages that they are evicted all the time; gemma2 has layers with windows, so two groups."""
    folder = write_folder(MODELS[request.param], tmp_path_factory.mktemp("live") / request.param)
    probe = LLM(folder, max_model_len=128, max_num_seqs=6)
    each = sum(group.layout.page_bytes for group in probe.engine.manager.groups)
    probe.close()
    with LLM(folder, max_model_len=128, max_num_seqs=6, kv_cache_memory_bytes=24 * each) as made:
        yield made


def random_request(llm: LLM, rng: random.Random, stems: list[list[int]]) -> str:
    stem = rng.choice(stems)
    prompt = [*stem[: rng.randint(1, len(stem))], *(rng.randrange(50) for _ in range(rng.randint(1, 20)))]
    if rng.random() < 0.15:
        return llm.engine.submit_beams(prompt, BeamSearchParams(2, rng.randint(1, 8))).request_id
    several = 2 if rng.random() < 0.3 else 1
    salt = rng.choice([b"", b"a", b"b"])
    pin = not len(llm.engine.manager.pins) and len(prompt) < 64 and rng.random() < 0.3
    params = SamplingParams(n=several, max_tokens=rng.randint(1, 30), seed=rng.randrange(9))
    return llm.engine.submit(prompt, params, salt=salt, pin=pin)


def test_who_follows_the_changes_knows_what_the_engine_knows(small: LLM) -> None:
    rng = random.Random(5)
    stems = [[rng.randrange(50) for _ in range(60)] for _ in range(3)]
    tracker = Tracker(small, RequestHistory(), "tiny")
    _, first = tracker.tell(whole=True)
    assert first is not None
    viewer, names = Viewer(first), list[str]()
    try:
        for _ in range(800):
            act = rng.random()
            if act < 0.3 and len(small.engine.scheduler.waiting) < 8:
                names.append(random_request(small, rng, stems))
            elif act < 0.33 and names:
                small.engine.cancel(rng.choice(names))
            elif act < 0.34:
                small.engine.manager.flush()
            elif act < 0.36:
                small.unpin()
            else:
                small.engine.step()
            if rng.random() < 0.6:
                delta, _ = tracker.tell(whole=False)
                if delta is not None:
                    viewer.apply(delta)
                agrees(viewer, small, tracker)
                assert tracker.tell(whole=False) == (None, None)  # nothing has happened since
        counters = small.engine.manager.counters
        assert viewer.hits and 0 < viewer.evicted <= counters.pages_evicted
        assert small.engine.scheduler.preemptions
        _, late = tracker.tell(whole=True)
        assert late is not None
        agrees(Viewer(late), small, tracker)
    finally:
        tracker.close()
        for name in names:
            small.engine.cancel(name)
        small.unpin()
    assert not small.events.listening


def test_who_is_told_too_little_is_told_everything(small: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_tracker, "CAPACITY", 4)
    tracker = Tracker(small, RequestHistory(), "tiny")
    tracker.tell(whole=True)
    small.generate([[1, 2, 3, 4, 5]], SamplingParams(max_tokens=20))
    delta, snapshot = tracker.tell(whole=False)
    assert delta is None and snapshot is not None
    agrees(Viewer(snapshot), small, tracker)
    tracker.close()


@pytest.mark.parametrize(
    ("prompt", "answers", "held"),
    [
        (5, [[1]], (1, 5)),
        (16, [[1]], (1, 16)),
        (16, [[1, 2]], (2, 17)),
        (20, [[1, 2, 3], [1, 2, 4]], (3, 16 + 2 * 6)),  # the last pages are their own, even where they are equal
        (20, [list(range(14)), list(range(14))], (4, 16 + 16 + 2)),  # a full page with the same tokens is one
        (32, [[1] * 10, [2] * 10, [3] * 10], (5, 32 + 27)),
    ],
)
def test_pages_that_answers_hold(prompt: int, answers: list[list[int]], held: tuple[int, int]) -> None:
    assert pages_held(prompt, answers, 16) == held
