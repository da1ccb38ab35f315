"""Codecs chosen layer by layer: the best sum there is, from what was measured, and a file that gives just that."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kvist import LLM
from kvist.cache.codec import PACKED
from kvist.errors import UsageError
from kvist.eval import sensitivity
from kvist.eval.choose import Option, Shelf, Wish, climb, compared, hull, rivals, texts
from kvist.eval.evaluate import Evaluation
from kvist.eval.method import REFERENCE, Method, methods
from kvist.eval.plan import Plan
from kvist.eval.sensitivity import Sensitivity, measure, rotation, usable
from kvist.eval.store import Store
from kvist.eval.table import lines
from kvist.eval.text import Document
from kvist.kernels.program import Mix
from kvist.kernels.reference_pages import _mixed

NAMES = ("int8", "int4", "lm3")  # few, for every pair that is chosen from them is compiled
PLAN = Plan(tokens=60, documents=3, lengths=(), depths=10, seeds=1, contexts=())


def silent(what: str, done: int, total: int) -> None:
    """Progress goes nowhere."""


def options(*pairs: tuple[int, float]) -> list[Option]:
    return [Option(f"c{size}", size, cost) for size, cost in pairs]


def test_a_hull_has_only_what_pays() -> None:
    given = options((4, 1.0), (2, 4.0), (3, 3.9), (8, 0.9), (6, 0.5), (6, 0.6), (5, 0.95))
    assert [option.bytes for option in hull(given)] == [2, 4, 6]
    assert hull(options((1, 0.0), (2, 0.0))) == options((1, 0.0))


def test_a_climb_is_the_best_sum_there_is() -> None:
    """Against all combinations: no smaller cost in as few bytes as it took."""
    random = np.random.default_rng(7)
    for room in range(15, 60, 3):
        hulls = [
            hull([Option("", size, float(random.exponential(1 / size))) for size in (3, 4, 5, 9, 16)]) for _ in range(4)
        ]
        if sum(found[0].bytes for found in hulls) > room:
            continue
        taken = climb(hulls, room)
        size, cost = sum(option.bytes for option in taken), sum(option.cost for option in taken)
        assert size <= room
        every = [(sum(o.bytes for o in some), sum(o.cost for o in some)) for some in itertools.product(*hulls)]
        left = max(
            large.bytes - small.bytes for found in hulls for small, large in itertools.pairwise([*found, found[-1]])
        )
        optimal = min((other for other_size, other in every if other_size <= room - left), default=math.inf)
        assert cost <= optimal + 1e-12, "all but the last few bytes are spent as well as they can be"


def made_up(llm: LLM) -> Sensitivity:
    """Early layers mind more, K more than V; errors halve with each bit, twice over."""
    places = [(layer, side) for layer in range(3) for side in "kv"]
    divergence = {(layer, side): 10.0**-layer * (4 if side == "k" else 1) for layer, side in places}
    return Sensitivity(
        "int4", divergence, {place: {"int8": 4.0**-4, "int4": 1.0, "lm3": 4.0} for place in places}, {}
    )


def test_bits_are_those_of_the_pages(llm: LLM, tmp_path: Path) -> None:
    shelf = Shelf(llm, NAMES, made_up(llm))
    for k, v in (("int4", "int4"), ("int8", "lm3"), ("int4", "auto")):
        pair = k if k == v else f"k={k},v={v.replace('auto', 'f32')}"
        with Method(pair).engine(llm, max_num_seqs=1) as engine:
            assert shelf.uniform(k, v).bits == 8 * engine.manager.bytes_per_token / (3 * 2 * 2 * 16)
    assert shelf.uniform("auto", "auto").bits == 32 and shelf.uniform("auto", "auto").cost == 0


def test_places_that_mind_more_get_more_bits(llm: LLM) -> None:
    shelf = Shelf(llm, NAMES, made_up(llm))
    choice = shelf.choose(6.5)
    assert 6 < choice.bits <= 6.5
    size = {place: option.bytes for place, option in choice.options.items()}
    for layer in range(3):
        assert size[layer, "k"] >= size[layer, "v"]
        assert layer == 2 or all(size[layer, side] >= size[layer + 1, side] for side in "kv")
    uniform = [shelf.uniform(k, v) for k in NAMES for v in NAMES]
    assert choice.cost < min(other.cost for other in uniform if other.bits <= 6.5)
    assert {option.codec for option in shelf.choose(32).options.values()} == {"auto"}
    assert rivals(shelf, NAMES, 6.5)[0] == "int4"
    with pytest.raises(UsageError, match=r"3.9 bits a number are too few: with the smallest codecs it is 4\.000"):
        shelf.choose(3.9)


def test_what_is_measured_is_what_a_lone_packed_layer_costs(llm: LLM, folder: Path, texts: list[Document]) -> None:
    found = measure(llm, folder, (*NAMES, "int5"), texts[:2], Store(), silent)
    assert found.probe == "int4" and len(found.divergence) == 6
    assert all(0 < nats < 0.1 for nats in found.divergence.values())
    for errors in found.errors.values():
        assert errors["int8"] < errors["int5"] < errors["int4"] < errors["lm3"]
        assert 3 < errors["int4"] / errors["int5"] < 5.5
    for place in ((0, "k"), (2, "v")):
        assert found.cost(place, "int4") == found.divergence[place]
        (again,) = sensitivity._probed(llm, "int4", [place], texts[:2], found.means)
        assert again == found.divergence[place], "whoever is measured beside it"
        (measured,) = sensitivity._probed(llm, "lm3", [place], texts[:2], found.means)
        assert 0.4 < found.cost(place, "lm3") / measured < 2.5, "what the probe tells of another codec"


def test_larger_pages_are_measured_whole(folder: Path) -> None:
    long = [Document("long", "0", tuple(np.random.default_rng(2).integers(2, 300, 160).tolist()))]
    with LLM(folder, kv_cache_memory_bytes=8 << 20, page_size=64) as llm:
        found = measure(llm, folder, ("int4", "kivi4"), long, Store(), silent)
    assert all(errors["kivi4"] > 0 < errors["int4"] for errors in found.errors.values()) and found.means.keys() == {0, 1, 2}


def test_the_rotation_is_the_engines() -> None:
    from kvist.cache.codec import any_codec
    from kvist.cache.codec.packed import signs

    int4, numbers = any_codec("int4"), np.random.default_rng(1).standard_normal((5, 64)).astype(np.float32)
    assert np.allclose(numbers @ rotation(64, int4), _mixed(Mix(signs(64), True, True), numbers), atol=1e-5)  # type: ignore[arg-type]
    assert np.array_equal(rotation(64, any_codec("fp8")), np.eye(64))  # type: ignore[arg-type]


def test_codecs_that_fit(llm: LLM, folder: Path) -> None:
    assert usable(llm) == [name for name in PACKED if not name.startswith("kivi")]
    with pytest.raises(UsageError, match=r"no codec to choose: codec kivi4 keeps a scale"):
        usable(llm, ("kivi4", "f16"))
    with pytest.raises(UsageError, match="name some that are not floats"):
        usable(llm, ("f16",))
    with LLM(folder, kv_cache_memory_bytes=8 << 20, page_size=64) as wide:
        assert usable(wide) == list(PACKED)


def run(llm: LLM, folder: Path, file: Path, store: Store) -> dict[str, Any]:
    wish = Wish.parse("6.5bits", file, methods(NAMES))
    wanted, told = compared(llm, folder, PLAN, store, silent, "tiny", wish, quick=True)
    return {**Evaluation(llm, folder, wanted, PLAN, store, silent).run("tiny").as_json(), "choice": told}


def test_a_choice_is_written_measured_and_found_again(
    llm: LLM, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, results = tmp_path / "codecs.json", tmp_path / "results"
    with Store(results) as store:
        found = run(llm, folder, file, store)
    written = file.read_text()
    told = json.loads(written)
    assert len(told["layers"]) == 3 and told["budget_bits"] == 6.5 and told["bits_per_value"] <= 6.5
    chosen = found["methods"][-1]
    assert chosen["codec"] == f"@{file}" and chosen["bits_per_value"] == told["bits_per_value"]
    rows = {row["codec"]: row for row in found["methods"]}
    assert {"f32", "f16", "int4"} <= rows.keys()
    assert 0 < chosen["kld_mean"] < rows["int4"]["kld_mean"]
    table = list(lines(found))
    assert any(line.startswith("chosen: K ") and str(file) in line for line in table)
    for name in ("_probed", "_errors"):
        monkeypatch.setattr(sensitivity, name, None)  # calling it would fail
    monkeypatch.setattr("kvist.eval.evaluate.force", None)
    with Store(results) as store:
        assert run(llm, folder, file, store) == found
    assert file.read_text() == written
    file.write_text(written.replace('"int4"', '"int8"'))
    with Store(results) as store:
        evaluation = Evaluation(llm, folder, (REFERENCE, Method(f"@{file}")), PLAN, store, silent)
        with pytest.raises(TypeError):
            evaluation.run("tiny")  # what the file says now was not measured


def test_layers_are_measured_on_other_text_than_the_choice(llm: LLM) -> None:
    plan = Plan(tokens=40, documents=4, lengths=(), depths=10, seeds=1, contexts=())
    names = {(text.domain, text.name) for text in texts(llm, plan, 5, 100)}
    assert len(names) == 5
    evaluated = Evaluation(llm, Path(__file__), (REFERENCE,), plan, Store(), silent).documents
    assert not names & {(text.domain, text.name) for text in evaluated}


@pytest.mark.parametrize(
    ("text", "says"),
    [(text, "bits a number") for text in ("", "x", "4.5 bytes", "0.5", "33bits", "-4", "nan", "4,5")],
)
def test_budgets_that_cannot_be_meant(text: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=says):
        Wish.parse(text, tmp_path / "x", methods(NAMES))
    for good in ("4.5", "4.5bits", "4.5 bit"):
        assert Wish.parse(good, tmp_path / "x", methods(NAMES)).bits == 4.5


def test_files_and_names_that_cannot_be_meant(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="folder that exists"):
        Wish.parse("4.5", tmp_path, methods(NAMES))
    with pytest.raises(UsageError, match="folder that exists"):
        Wish.parse("4.5", tmp_path / "no" / "x", methods(NAMES))
    with pytest.raises(UsageError, match="single codecs"):
        Wish.parse("4.5", tmp_path / "x", methods(["k=int5,v=int4"]))
