"""Where the time of a step goes: operation by operation, waiting, and the host.

The wall time of `engine.step` falls into exactly three parts. **Operations**: what the kernels' threads worked, divided
by their number. **Waiting**: what they did not work while the compiled loop ran (for an op they depend on, for the
others at the end, before they woke up). **Host**: all that is not in the compiled loop, which is Python.

    step       |------------------------------------------------------------------------------|
    host       | schedule | batch | launch |                            | launch | batch | sample |
    loop                                   |= op =.= op ==.. wait ..= op =|
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from kvist.bench.recorder import Recorder, Run
from kvist.bench.roofline import Roofline, cost_of
from kvist.bench.workloads import DECODES, PREFILLS, Setting
from kvist.engine.params import SamplingParams
from kvist.errors import unknown_name
from kvist.kernels.cpu.profile import Profile, Record
from kvist.kernels.program import Weight
from kvist.kernels.traffic import Traffic
from kvist.llm import LLM

DEFAULT = ("decode_1", "decode_16", "prefill_2048")
STEPS = 48  # of a decode workload
PROMPTS = 3  # of a prefill workload
Roles = Callable[[Weight], str | None]


@dataclass
class Operation:
    """What carries one label in a step (of a prefill: in all steps of a prompt).

    seconds: worked, by all threads together, divided by their number; waited likewise, before it could begin. share: of
    the step. roofline_share, bound: the larger share of what the machine can do ("read" or "fma"), while it worked.
    """

    label: str
    count: float
    seconds: float
    waited: float
    share: float
    traffic: Traffic
    roofline_share: float
    bound: str

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        moved = self.traffic
        return {
            "label": self.label, "count": self.count, "seconds": self.seconds, "waited_seconds": self.waited,
            "share": self.share, "bytes": moved.bytes, "weight_bytes": moved.weights,
            "activation_bytes": moved.activations, "page_bytes_read": moved.pages_read,
            "page_bytes_written": moved.pages_written, "operations": moved.operations,
            "gb_s": rate(moved.bytes, self.seconds), "gflop_s": rate(moved.operations, self.seconds),
            "roofline_share": self.roofline_share, "bound": self.bound,
        }  # fmt: skip


@dataclass
class Profiled:
    """One workload. runs: steps, or prompts. read, fma: what the machine could do then, a second.

    seconds: of a run; what follows adds up to it.
    """

    name: str
    note: str
    runs: int = 0
    read: float = 0.0
    fma: float = 0.0
    seconds: float = 0.0
    operations: list[Operation] = field(default_factory=list)
    waiting: float = 0.0
    host: dict[str, float] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        return {
            "name": self.name, "note": self.note, "runs": self.runs, "seconds": self.seconds,
            "operations": [operation.as_json() for operation in self.operations],
            "waiting_seconds": self.waiting, "host_seconds": sum(self.host.values()), "host": self.host,
            "roofline": {"read_gb_s": self.read / 1e9, "fma_gflops": self.fma / 1e9},
        }  # fmt: skip


def rate(amount: float, seconds: float) -> float:
    """In billions a second."""
    return amount / seconds / 1e9 if seconds else 0.0


def check_names(names: Sequence[str]) -> tuple[str, ...]:
    """The workloads asked for, or the usual ones; an unknown name is refused."""
    known = (*DECODES, *PREFILLS)
    for name in names:
        if name not in known:
            raise unknown_name("workload to profile", name, known)
    return tuple(dict.fromkeys(names)) or DEFAULT


def profile(
    llm: LLM, roofline: Roofline, names: Sequence[str] = (), starting: Callable[[str], None] = lambda name: None
) -> Iterator[Profiled]:
    """Profile workloads one after the other; `starting` is told each name before it runs."""
    setting = Setting(llm.engine, cost_of(llm.model, llm.engine), roofline, 1)
    for name in check_names(names):
        starting(name)
        tokens = DECODES[name][1] + STEPS + 2 if name in DECODES else PREFILLS[name] + 1
        if tokens > llm.engine.limits.max_model_len:
            yield Profiled(name, f"needs {tokens} positions, the model has {llm.engine.limits.max_model_len}")
            continue
        before = roofline.probe("read"), roofline.probe("fma")
        with Recorder(llm.engine) as recorder:
            if name in DECODES:
                runs = _decode(setting, recorder, *DECODES[name])
                note = "a step of {} with {} tokens before it".format(*DECODES[name])
            else:
                runs = _prefill(setting, recorder, PREFILLS[name])
                note = f"a prompt of {PREFILLS[name]}"
            read, fma = max(before[0], roofline.probe("read")), max(before[1], roofline.probe("fma"))
            yield summary(Profiled(name, note, len(runs), read, fma), recorder.profile, runs, role_names(llm))


def role_names(llm: LLM) -> Roles:
    """What people call a matrix: its role, without the layer."""
    names = {id(weight): role.rpartition(".")[2] for role, weight in llm.model.matrices.items()}
    names[id(llm.model.matrices["head"])] = "head"  # also where it is the embedding
    return lambda weight: names.get(id(weight))


def _decode(setting: Setting, recorder: Recorder, sequences: int, context: int) -> list[Run]:
    """The steps in which every sequence gets a token."""
    engine, runs = setting.engine, []
    params = SamplingParams(temperature=0.0, max_tokens=STEPS + 1, ignore_eos=True)
    waiting = {engine.submit(setting.prompt(context, 1000 * sequences + i), params) for i in range(sequences)}
    while waiting:  # until each has its first token
        waiting -= {output.request_id for output in engine.step()}
    while engine.has_work:
        run, made = recorder.record(engine.step)
        if len(made) == sequences:
            runs.append(run)
    return runs


def _prefill(setting: Setting, recorder: Recorder, length: int) -> list[Run]:
    """All steps of a prompt together, for some prompts that are not cached."""
    engine, runs = setting.engine, []
    for seed in range(PROMPTS):
        engine.submit(setting.prompt(length, 600_000 + seed), SamplingParams(temperature=0.0, max_tokens=1))
        steps = []
        while engine.has_work:
            steps.append(recorder.record(engine.step)[0])
        runs.append(Run.together(steps))
    return runs


def summary(into: Profiled, profile: Profile, runs: Sequence[Run], role: Roles) -> Profiled:
    """Fill in the mean of the middle third of the runs: it is near the median, and its parts still add up."""
    ordered = sorted(runs, key=lambda run: run.wall)
    cut = len(ordered) // 3
    chosen = ordered[cut : len(ordered) - cut]
    count = len(chosen)
    whole = Run.together(chosen)
    into.seconds = whole.wall / count / 1e9
    into.host = {part: spent / count / 1e9 for part, spent in whole.host.items()}
    groups: dict[str, list[Record]] = {}
    for launch in whole.launches:
        for record in profile.records(launch):
            groups.setdefault(record.label(role), []).append(record)
    into.operations = [_operation(into, label, records, count) for label, records in groups.items()]
    loop = sum(launch.nanoseconds for launch in whole.launches) / count / 1e9
    into.waiting = loop - sum(operation.seconds for operation in into.operations)
    return into


def _operation(into: Profiled, label: str, records: Sequence[Record], count: int) -> Operation:
    """All records of one label in `count` runs."""
    threads = len(records[0].worked)
    seconds = sum(sum(record.worked) for record in records) / threads / count / 1e9
    waited = sum(sum(record.waited) for record in records) / threads / count / 1e9
    moved = sum((record.traffic for record in records), Traffic()) // count
    shares = {
        "read": rate(moved.bytes, seconds) * 1e9 / into.read,
        "fma": rate(moved.operations, seconds) * 1e9 / into.fma,
    }
    bound = max(shares, key=lambda name: shares[name])
    return Operation(label, len(records) / count, seconds, waited, seconds / into.seconds, moved, shares[bound], bound)
