"""The runner of benchmarks/peers, with fake peers: order, resuming, failures, medians, ratios, the picture."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import protocol
import pytest
from runner import engines, report, workloads
from runner.disturbance import Disturbance
from runner.engines import EngineSpec
from runner.environments import REQUIREMENTS
from runner.failure import PeerError
from runner.measure import measure
from runner.plot import drawing, panels_of, picture
from runner.results import Results
from runner.worker import Worker
from runner.workloads import CASES, ROWS, Case

PEERS = Path(__file__).parents[2] / "benchmarks" / "peers"
SMALL = (Case("context_32", 1, 4, 5), Case("context_2048", 1, 6, 1, again=True))
SETTINGS = {"model": "fake", "threads": 2, "quick": False, "machine": "test"}
ROW = {row.name: row for row in ROWS}


def spec(name: str, **changes: object) -> EngineSpec:
    """An entry of the real table, run by the fake peer."""
    real = next(spec for spec in engines.ENGINES if spec.name == name)
    return replace(real, **{"options": {}, **changes})


class Fakes:
    """Starts fake peers and keeps them, to see that they are ended."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.started, self.workers = folder, [], []

    def __call__(self, spec: EngineSpec) -> tuple[Worker, dict[str, str]]:
        self.started.append(spec.name)
        script = Path(__file__).parent / "fake_peer.py"
        worker = Worker([sys.executable, script], {}, sorted(os.sched_getaffinity(0)), self.folder / "log")
        self.workers.append(worker)
        options = {"diary": str(self.folder / "diary"), **spec.options}
        try:
            return worker, worker.ask({"model": spec.name, "threads": 2, "options": options}, 20)["about"]
        except PeerError:
            worker.close()
            raise

    @property
    def diary(self) -> list[str]:
        """Who did what, warm-ups (of up to four tokens) included."""
        return (self.folder / "diary").read_text().splitlines()


@pytest.fixture
def fakes(tmp_path: Path) -> Iterator[Fakes]:
    made = Fakes(tmp_path)
    yield made
    for worker in made.workers:
        assert worker._process.poll() is not None, "a worker was left running"


@pytest.fixture
def results(tmp_path: Path) -> Results:
    return Results(tmp_path / "results.json", SETTINGS)


def test_engines_take_turns_and_each_round_begins_with_another(fakes: Fakes, results: Results) -> None:
    both = [spec("kvist"), spec("openvino")]
    measure(both, SMALL[:1], 2, results, fakes)
    assert fakes.diary == [
        "kvist 1x4+4", "kvist 1x4+5", "openvino 1x4+4", "openvino 1x4+5",
        "openvino 1x4+4", "openvino 1x4+5", "kvist 1x4+4", "kvist 1x4+5",
    ]  # fmt: skip
    assert fakes.started == ["kvist", "openvino", "openvino", "kvist"]


def test_an_engine_that_is_slow_to_start_keeps_its_process(fakes: Fakes, results: Results) -> None:
    measure([spec("vllm"), spec("kvist")], SMALL[:1], 2, results, fakes)
    assert fakes.started == ["vllm", "kvist", "kvist"]


def test_again_runs_the_same_prompt_once_more(fakes: Fakes, results: Results) -> None:
    measure([spec("kvist")], SMALL[1:], 1, results, fakes)
    assert fakes.diary == ["kvist 1x6+1"] * 3  # the warm-up, then the same work twice
    assert results.of("kvist", "context_2048")[0]["again"] > 0


def test_a_run_continues_where_it_stopped(fakes: Fakes, results: Results, tmp_path: Path) -> None:
    measure([spec("kvist")], SMALL, 1, results, fakes)
    done = len(fakes.diary)
    again = Results(tmp_path / "results.json", SETTINGS)
    measure([spec("kvist")], SMALL, 1, again, fakes)
    assert len(fakes.diary) == done
    measure([spec("kvist")], SMALL, 2, again, fakes)
    assert [m["round"] for m in again.of("kvist", "context_32")] == [0, 1]
    again.forget({"kvist"}, {"context_32"})
    assert not again.of("kvist", "context_32")
    assert len(again.of("kvist", "context_2048")) == 2


def test_other_settings_are_not_mixed(results: Results, tmp_path: Path) -> None:
    results.write()
    with pytest.raises(ValueError, match="threads 2, not 4"):
        Results(tmp_path / "results.json", {**SETTINGS, "threads": 4})
    assert Results(tmp_path / "results.json", {**SETTINGS, "threads": 4}, fresh=True).data["measurements"] == []


@pytest.mark.parametrize(
    ("options", "reason"),
    [({"breaks": 4}, "ValueError: cannot do this"), ({"dies": 4}, "its process ended with status 3")],
)
def test_a_failing_case_loses_only_its_cell(
    fakes: Fakes, results: Results, options: dict[str, int], reason: str
) -> None:
    measure([spec("openvino", options=options), spec("kvist")], SMALL, 2, results, fakes)
    assert reason in (results.failure("openvino", "context_32") or "")
    assert len(results.of("openvino", "context_2048")) == len(results.of("kvist", "context_32")) == 2
    text = report.report(results)
    assert "| decode, 1 sequence, short context |" in text
    assert f"- `openvino`, context_32: {reason}" in text


def test_an_engine_that_does_not_start_is_tried_once(fakes: Fakes, results: Results) -> None:
    measure([spec("vllm", options={"breaks": "start"}), spec("kvist")], SMALL, 2, results, fakes)
    assert fakes.started.count("vllm") == 1
    assert results.failure("vllm", "context_2048") == "ImportError: no such peer"
    assert len(results.of("kvist", "context_2048")) == 2
    assert "- `vllm`, context_32, context_2048: ImportError: no such peer" in report.report(results)


def test_a_success_takes_the_failure_back(fakes: Fakes, results: Results) -> None:
    measure([spec("kvist", options={"breaks": 4})], SMALL[:1], 1, results, fakes)
    measure([spec("kvist")], SMALL[:1], 1, results, fakes)
    assert results.failure("kvist", "context_32") is None
    assert "Not measured" not in report.report(results)


def test_a_worker_that_says_nothing_is_given_up(tmp_path: Path) -> None:
    worker = Worker([sys.executable, "-c", "import time; time.sleep(60)"], {}, [0], tmp_path / "log")
    with pytest.raises(PeerError, match="no answer"):
        worker.ask({}, 0.2)
    worker.close()


def test_an_idle_worker_is_stopped(fakes: Fakes) -> None:
    worker, _ = fakes(spec("kvist"))
    stat = Path(f"/proc/{worker._process.pid}/stat")
    until = time.monotonic() + 5
    while stat.exists() and stat.read_text().rsplit(")", 1)[1].split()[0] != "T":
        assert time.monotonic() < until, "it runs although nobody asked"
    worker.close()


def filled(results: Results) -> Results:
    """Three rounds of two engines: decode at 10, 20, 60 and 5, 10, 15 tokens/s; first tokens of 1 and 3 s."""
    for name, rates, first in (("kvist", (10, 20, 60), 1.0), ("llamacpp-bf16", (5, 10, 15), 3.0)):
        results.about(name, {"version": "1"})
        for turn, rate in enumerate(rates):
            reply = {"first": first, "decode_tokens": rate * 2, "decode_seconds": 2.0, "tokens": [7]}
            results.add(name, "context_32", turn, reply)
            results.add(name, "context_2048", turn, {**reply, "decode_tokens": 0, "again": first / 100})
    return results


def test_medians_and_ratios(results: Results) -> None:
    filled(results)
    llama = spec("llamacpp-bf16")
    assert report.values(results, "kvist", ROW["decode_1"]) == [10, 20, 60]
    assert report.ratio(results, llama, ROW["decode_1"]) == 2.0
    assert report.ratio(results, llama, ROW["prefill_2048"]) == 3.0
    assert report.ratio(results, llama, ROW["decode_16"]) is None
    text = report.report(results)
    assert "| decode, 1 sequence, short context | 20.0 tok/s | 10.0 tok/s (2.00x) |" in text
    assert "| first token, 2,048 tokens cached | 10 ms | 30 ms (3.00x) |" in text
    assert "first token as kvist's in 6 of 6" in text
    assert "prefill, 8,000 tokens" not in text


def test_a_busy_machine_is_told(results: Results) -> None:
    filled(results)
    assert "Others used the machine" not in report.report(results)
    for measurement in results.of("kvist", "context_32")[:2]:
        measurement["others"] = 1.25
    assert "in 2 of 12 measurements, up to 1.2 cores" in report.report(results)


def test_the_time_that_others_take_is_seen() -> None:
    burn = "import time\nend = time.monotonic() + 0.8\nwhile time.monotonic() < end: pass"
    disturbance = Disturbance(os.getpid())
    subprocess.run([sys.executable, "-c", burn], check=True)
    found = disturbance.cores()
    assert found is None or found > 0.3


def test_the_picture_is_whole_and_has_every_bar(results: Results, tmp_path: Path) -> None:
    filled(results)
    panels = panels_of(results, "kvist")
    assert [panel.title for panel in panels] == [
        row.title for row in ROWS if row.case in ("context_32", "context_2048")
    ]
    assert {name: value for name, value, _ in panels[1].bars} == {"kvist": 2048, "llama.cpp": 2048 / 3}
    root = ET.fromstring(drawing(panels))
    bars = [node for node in root.iter("{http://www.w3.org/2000/svg}rect") if node.get("class") != "paper"]
    assert len(bars) == 6
    picture(results, tmp_path)
    assert (tmp_path / "peers.svg").exists()
    assert not (tmp_path / "peers-quantised.svg").exists()


def test_a_timeline_counts_full_steps_after_all_first_tokens() -> None:
    timeline = protocol.Timeline(3)
    for step in ([], [0, 1], [0, 1, 2], [0, 1, 2], [0, 1, 2], [2]):  # a prompt, a late one, two full steps, a tail
        timeline.step(step)
    told = timeline.as_json()
    assert told["decode_tokens"] == 6
    assert told["first"] > 0
    short = protocol.Timeline(2)
    short.step([0])
    with pytest.raises(RuntimeError, match="1 of 2 sequences got no token"):
        short.as_json()


def test_prompts_are_the_same_for_all_and_new_every_round() -> None:
    case = CASES[1]
    assert workloads.prompts(case, 0) == workloads.prompts(case, 0)
    assert workloads.prompts(case, 0) != workloads.prompts(case, 1)
    assert workloads.prompts(case.warm_up(), 0)[0] != workloads.prompts(case, 0)[0]
    assert [len(prompt) for prompt in workloads.prompts(case, 0)] == [32] * 16


def test_names_are_checked_and_every_engine_has_its_files() -> None:
    with pytest.raises(ValueError, match="no engine is called vlm; there are kvist"):
        engines.chosen("vlm")
    with pytest.raises(ValueError, match="no row is called decode_2"):
        workloads.chosen_rows("decode_2", False)
    assert [spec.name for spec in engines.chosen("vllm,kvist")] == ["kvist", "vllm"]
    names = {case.name for case in CASES}
    assert {row.case for row in ROWS} == names
    for entry in engines.ENGINES:
        assert (PEERS / "adapters" / entry.script).is_file()
        assert set(entry.cases) <= names
        if entry.environment != "kvist":
            lock = (REQUIREMENTS / f"requirements-{entry.environment}.txt").read_text().splitlines()
            assert all("==" in line for line in lock if not line.startswith("#"))


def test_the_file_is_json_for_programs(results: Results, tmp_path: Path) -> None:
    filled(results)
    assert set(json.loads((tmp_path / "results.json").read_text())) == {
        "settings",
        "engines",
        "measurements",
        "failures",
    }
