"""Where a step's time goes: labels, bytes and operations by hand, parts that add up, and nothing left behind."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kvist.bench.profile import Profiled, check_names, profile, role_names, summary
from kvist.bench.profile_table import lines
from kvist.bench.recorder import Recorder, timed
from kvist.bench.roofline import Roofline
from kvist.engine.params import SamplingParams
from kvist.errors import UsageError
from kvist.kernels.cpu import abi
from kvist.kernels.cpu.backend import CpuBackend, CpuExecutable
from kvist.kernels.program import Buffer, Limits, Matmul, Program
from kvist.kernels.traffic import Traffic
from kvist.llm import LLM
from ops import fill, numbers, row_batch, tiny_pool, weight
from tiny import MODELS, write_folder

TINY = MODELS["llama"]  # hidden 64, 4 heads and 2 KV heads of 16, inner 96, vocabulary 300, 3 layers, float32
SLOT = 2 * 2 * 16 * 4  # K and V of a position in a layer


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    path = write_folder(TINY, tmp_path_factory.mktemp("models") / "llama")
    with LLM(path, threads=2, kv_cache_memory_bytes=16 << 20) as made:
        yield made


def executable(llm: LLM) -> CpuExecutable:
    found = llm.engine.runner.executable
    assert isinstance(found, CpuExecutable)
    return found


def record_step(llm: LLM, prompt: list[int]) -> tuple[dict[str, Traffic], dict[str, int], Profiled]:
    """One step of a new prompt: traffic and count by label, and its summary."""
    engine, role = llm.engine, role_names(llm)
    with Recorder(engine) as recorder:
        name = engine.submit(prompt, SamplingParams(temperature=0.0, max_tokens=2, ignore_eos=True))
        run, _ = recorder.record(engine.step)
        found = summary(Profiled("one", "", 1, 1e9, 1e9), recorder.profile, [run], role)
        assert sum(run.host.values()) + sum(launch.nanoseconds for launch in run.launches) == run.wall
        traffic: dict[str, Traffic] = {}
        counts: dict[str, int] = {}
        for record in recorder.profile.records(run.launches[0]):
            label = record.label(role)
            traffic[label] = traffic.get(label, Traffic()) + record.traffic
            counts[label] = counts.get(label, 0) + 1
            assert len(record.worked) == len(record.waited) == 2
            assert min(record.worked + record.waited) >= 0
        engine.cancel(name)
    return traffic, counts, found


def test_every_operation_is_there_under_its_name(llm: LLM) -> None:
    _, counts, _ = record_step(llm, [5, 6, 7])
    matrices = {
        role: count
        for label, count in counts.items() if label.startswith("matmul ")
        for role in label.split()[1].split("+")
    }  # fmt: skip
    assert matrices.pop("silu", 0) + counts.get("gate silu", 0) == 3  # fused or not
    assert matrices == {**dict.fromkeys(("q", "k", "v", "o", "gate", "up", "down"), 3), "head": 1}
    assert counts["matmul down 64x96 f32"] == counts["attend"] == counts["rotary_store"] == counts["merge"] == 3
    assert (counts["norm rms"], counts["embed f32"], counts["plan"]) == (7, 1, 1)


def test_bytes_and_operations_as_by_hand(llm: LLM) -> None:
    traffic, _, _ = record_step(llm, [9, 8, 7, 6, 5])
    rows, layers = 5, 3
    assert traffic["matmul down 64x96 f32"] == Traffic(
        weights=layers * 64 * 96 * 4,
        activations=layers * rows * (96 + 64 + 64) * 4,  # x, residual, out
        operations=layers * 2 * rows * 64 * 96,
    )
    assert traffic["matmul head 300x64 f32"] == Traffic(
        weights=300 * 64 * 4, activations=(64 + 304) * 4, operations=2 * 300 * 64
    )  # of the last row alone
    assert traffic["attend"] == Traffic(
        activations=layers * 2 * rows * 64 * 4,
        pages_read=layers * rows * SLOT,
        operations=layers * 4 * 4 * 16 * (1 + 2 + 3 + 4 + 5),
    )
    stored = traffic["rotary_store"]
    assert stored.pages_written == layers * rows * SLOT
    assert stored.operations == layers * rows * 6 * 8 * (4 + 2)
    assert traffic["plan"] == traffic["merge"] == Traffic()


def test_a_context_is_read_once_a_step(llm: LLM) -> None:
    engine = llm.engine
    name = engine.submit(list(range(40)), SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True))
    engine.step()
    with Recorder(engine) as recorder:
        run, _ = recorder.record(engine.step)
        (attend, *_) = [r for r in recorder.profile.records(run.launches[0]) if r.kind == "attend"]
    engine.cancel(name)
    assert attend.traffic.pages_read == 41 * SLOT
    assert attend.traffic.operations == 4 * 4 * 16 * 41


@pytest.mark.parametrize("name", ["decode_1", "decode_16"])
def test_the_parts_add_up_to_the_step(llm: LLM, name: str) -> None:
    (found,) = profile(llm, Roofline(llm.backend.team, 1 << 20), [name])
    parts = sum(each.seconds for each in found.operations) + found.waiting + sum(found.host.values())
    assert parts == pytest.approx(found.seconds, rel=1e-9)
    assert sum(each.share for each in found.operations) < 1
    assert 0 <= found.waiting < found.seconds
    assert all(spent >= 0 for spent in found.host.values())
    head = next(each for each in found.operations if each.label.startswith("matmul head"))
    sequences = int(name.removeprefix("decode_"))
    assert (head.count, head.traffic.operations) == (1, sequences * 2 * 300 * 64)
    shares = (head.traffic.bytes / head.seconds / found.read, head.traffic.operations / head.seconds / found.fma)
    assert head.roofline_share == pytest.approx(max(shares))
    assert head.bound == ("read", "fma")[shares[1] > shares[0]]
    printed = list(lines(found))
    assert len(printed) == 2 + len(found.operations) + 8
    assert [line.split()[0] for line in printed[-7:]] == [
        "waiting",
        "host",
        "schedule",
        "batch",
        "launch",
        "sample",
        "step",
    ]


def test_nothing_is_left_when_it_is_over(llm: LLM) -> None:
    record_step(llm, [1, 2])
    assert executable(llm)._context[abi.TIMES] == 0
    assert executable(llm)._profile is None
    assert "run" not in vars(executable(llm)) and "forward" not in vars(llm.engine.runner)
    with pytest.raises(ZeroDivisionError), executable(llm).profile():
        raise ZeroDivisionError
    assert (executable(llm)._context[abi.TIMES], executable(llm)._profile) == (0, None)


def test_watching_changes_no_bit(llm: LLM) -> None:
    def answer(seen: list[bytes]) -> None:
        llm.engine.observe = lambda request, position, logits: seen.append(logits.tobytes())
        params = SamplingParams(temperature=0.0, max_tokens=6, ignore_eos=True)
        llm.engine.submit(list(range(50, 70)), params)
        while llm.engine.has_work:
            llm.engine.step()
        llm.engine.observe = None

    plain: list[bytes] = []
    watched: list[bytes] = []
    answer(plain)
    with Recorder(llm.engine):
        answer(watched)
    assert plain == watched and len(plain) == 6


def test_a_workload_too_long_for_the_model_says_so(llm: LLM) -> None:
    (found,) = profile(llm, Roofline(llm.backend.team, 1 << 20), ["prefill_2048"])
    assert found.runs == 0 and found.note == "needs 2049 positions, the model has 256"
    assert list(lines(found)) == [f"prefill_2048: {found.note}"]


def test_unknown_workloads_are_refused() -> None:
    assert check_names([]) == ("decode_1", "decode_16", "prefill_2048")
    assert check_names(["decode_64", "decode_64"]) == ("decode_64",)
    with pytest.raises(UsageError, match="known are decode_1, decode_16, decode_1_ctx8000, decode_64, prefill_2048"):
        check_names(["xyz"])


def test_logits_that_are_taken_in_portions(backend: CpuBackend) -> None:
    """Each portion is a run of its own, of the head alone."""
    x, last, out = Buffer("x", 16), Buffer("last", 16, sampled=True), Buffer("out", 16, sampled=True)
    matrix = weight(numbers(1, 16, 16))
    ops = (fill(x, numbers(0, 8, 16)), Matmul(x, matrix, x), Matmul(last, matrix, out))
    bound = backend.bind(Program(ops, 2, 1, 1, 16, 1, 16), [tiny_pool()], Limits(8, 2, 1))
    with bound.profile() as found:
        bound.run(row_batch(range(8), [0, 3, 5, 6, 7]))
    assert [(launch.sampled, len(list(found.records(launch)))) for launch in found.launches] == [(2, 4), (2, 2), (1, 2)]
    final = list(found.records(found.launches[-1]))
    assert final[0].traffic.operations == 2 * 16 * 16
    assert found.launches[0].times.shape == (2, 4, 2)


def test_timed_gives_the_method_back(tmp_path: Path) -> None:
    class Owner:
        def double(self, n: int) -> int:
            return 2 * n

    owner: Any = Owner()
    with timed(owner, "double") as spans:
        assert owner.double(4) == 8
    assert "double" not in vars(owner) and len(spans) == 1 and spans[0][0] <= spans[0][1]
    assert np.diff(spans).shape == (1, 1)
