"""Intervals, buckets, tables, pictures, from scores made by hand."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kvist.errors import UsageError
from kvist.eval.bootstrap import interval
from kvist.eval.method import FLOOR, REFERENCE, Method
from kvist.eval.plots import NAMES, draw
from kvist.eval.report import Report, Result, by_position
from kvist.eval.scores import Scores
from kvist.eval.speed import ROUNDS, STEADY, figures, line
from kvist.eval.table import lines
from kvist.eval.text import Document


def scores(reference: list[float], own: list[float], divergence: list[float], same: str, sure: str) -> Scores:
    arrays = (np.array(numbers, np.float32) for numbers in (reference, own, divergence))
    truth, mine, far = arrays
    return Scores(mine, truth, far, *(np.array([c == "1" for c in bits]) for bits in (same, sure)), 2048)


def report() -> Report:
    documents = [Document("prose", "a", (1, 2, 3)), Document("code", "b", (1, 2))]
    exact = [scores([-1, -2], [-1, -2], [0, 0], "11", "10"), scores([-3], [-3], [0], "1", "0")]
    worse = [scores([-1, -2], [-1.5, -2.5], [0.1, 0.3], "10", "10"), scores([-3], [-3.5], [0.2], "0", "0")]
    turns = np.array([[0.010 + 2e-6 * (context + STEADY / 2)] * ROUNDS for context in (100, 200)])
    return Report(
        {"model": "m", "weights": "f32", "threads": 2, "page_size": 16, "plan": {"lengths": [1000]}},
        documents,
        [
            Result(REFERENCE, 1024, 256, exact, [True, True, False], turns),
            Result(FLOOR, 512, 256, exact, [True, True, False], turns / 2),
            Result(Method("f16", "window:8+4"), 512, 256, worse, [True, False, True], turns * 2),
        ],
        (100, 200),
    )


def test_numbers_by_hand() -> None:
    found = report().as_json()
    exact, _, worse = found["methods"]
    assert found["reference"]["perplexity"] == pytest.approx(np.exp(2)) == exact["perplexity"]
    assert worse["perplexity"] == pytest.approx(np.exp(2.5))
    assert worse["perplexity_change"] == pytest.approx(np.exp(0.5) - 1)
    assert worse["perplexity_change_interval"] == pytest.approx([np.exp(0.5) - 1] * 2)  # both documents lost the same
    assert (worse["kld_mean"], worse["kld_median"]) == (pytest.approx(0.2), pytest.approx(0.2))
    assert worse["kld_p999"] == pytest.approx(0.3, rel=1e-2)
    assert worse["top1"] == pytest.approx(1 / 3) and worse["top1_sure"] == 1
    assert worse["top1_interval"] == [0, 0.5]  # twice the one document, twice the other
    assert (worse["passkey"], exact["passkey"]) == (0.5, 1)  # of the two that float32 finds
    assert (found["passkey_cells"], found["passkey_cells_kept"]) == (3, 2)
    assert (exact["bits_per_value"], worse["bits_per_value"]) == (32, 16)
    assert exact["live_bytes_per_token"] == 4096 / 3
    assert exact["step_ms_intercept"] == pytest.approx(10) and exact["step_us_per_1k_tokens"] == pytest.approx(2000)
    assert worse["slope_to_f16"] == pytest.approx(4)
    assert [domain["domain"] for domain in worse["by_domain"]] == ["prose", "code"]


def test_intervals() -> None:
    assert interval([0, 0, 0], [5, 9, 2]) == (0, 0)
    low, high = interval([1, 0, 4, 2], [2, 2, 4, 4])
    assert 0 <= low < 7 / 12 < high <= 1
    assert interval([1, 0, 4, 2], [2, 2, 4, 4]) == (low, high) != interval([1, 0, 4, 2], [2, 2, 4, 4], seed=1)
    random = np.random.default_rng(0)
    few, many = (interval(random.normal(size=n), np.ones(n)) for n in (20, 2000))
    assert many[1] - many[0] < (few[1] - few[0]) / 5


def test_an_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    random = np.random.default_rng(7)
    inside = [low <= 0 <= high for low, high in (interval(random.normal(size=40), np.ones(40)) for _ in range(200))]
    assert 0.88 < np.mean(inside) < 0.99


def test_buckets_of_positions() -> None:
    n = 300
    one = scores([-1] * n, [-1] * 64 + [-2] * (n - 64), [0] * 64 + [0.5] * (n - 64), "1" * n, "1" * n)
    short = scores([-1] * 10, [-1] * 10, [0] * 10, "0" * 10, "1" * 10)
    found = list(by_position([one, short]))
    assert [(b["from"], b["to"], b["positions"]) for b in found] == [
        (0, 64, 74), (64, 128, 64), (128, 256, 128), (256, 300, 44),
    ]  # fmt: skip
    assert [b["kld_mean"] for b in found] == [0, 0.5, 0.5, 0.5] and found[0]["top1"] == 64 / 74
    assert found[1]["perplexity_change"] == pytest.approx(np.e - 1)


def test_a_line_through_steps() -> None:
    found = line((100, 200, 400), [0.01 + 1e-6 * (context + STEADY / 2) for context in (100, 200, 400)])
    assert (found.intercept, found.slope) == (pytest.approx(0.01), pytest.approx(1e-6))


def test_what_slows_a_turn_for_all_changes_no_ratio() -> None:
    contexts, random = (1000, 2000, 4000, 8000), np.random.default_rng(5)
    at = np.array(contexts)[:, None] + STEADY / 2
    slow = random.uniform(1, 3, 12)[None]  # each round another machine
    floor, own = (0.010 + 2e-6 * at) * slow, (0.012 + 1e-6 * at) * slow
    own[:, :5] *= random.uniform(1, 9, (4, 5))  # and these turns were disturbed alone
    found = figures(contexts, own, floor)
    assert found["slope_to_f16"] == pytest.approx(0.5)
    low, high = found["slope_to_f16_interval"]
    assert low < 0.5 < high and figures(contexts, own, floor) == found
    assert figures(contexts, floor, floor)["slope_to_f16_interval"] == pytest.approx([1, 1])
    alone = figures(contexts, own, None)
    assert alone["slope_to_f16"] is alone["slope_to_f16_interval"] is None and len(alone["steps"]) == 4
    assert figures((), np.empty((0, 1)), None)["steps"] == []


def test_the_table_is_aligned_and_says_what_was_measured() -> None:
    title, reference, *rows = list(lines(report().as_json()))
    assert all(len(row) == len(title) for row in rows[:3]) and max(map(len, (title, *rows))) <= 140
    assert rows[2].startswith("f16 window:8+4") and "50.0%" in rows[2]
    assert re.search(r" 0 \[0, 0\] +0 +0 ", rows[0]) and "7.3891" in reference
    assert "2 documents, 3 positions of prose, code" in rows[3] and "2 of 3 keys" in rows[6]


def test_pictures(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    files = draw(report().as_json(), tmp_path / "new" / "folder")
    assert [file.name for file in files] == list(NAMES)
    before = [file.read_bytes() for file in files]
    assert all(content.startswith(b"<?xml") and b"</svg>" in content for content in before)
    assert [file.read_bytes() for file in draw(report().as_json(), tmp_path / "again")] == before


def test_pictures_need_matplotlib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    nothing: dict[str, Any] = {}
    with pytest.raises(UsageError, match="pip install"):
        draw(nothing, tmp_path / "never")
    assert not (tmp_path / "never").exists()
