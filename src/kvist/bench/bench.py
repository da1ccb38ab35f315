"""Run the workloads on one engine, in the same process as the probes of the machine."""

from __future__ import annotations

import resource
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from kvist.bench import shared, speculation, workloads
from kvist.bench.machine import commit
from kvist.bench.roofline import Roofline, cost_of
from kvist.bench.workloads import DECODES, PREFILLS, Result, Setting
from kvist.config import SpeculativeConfig
from kvist.errors import unknown_name
from kvist.llm import LLM

NAMES = (
    "decode_1",
    "decode_1_ctx8000",
    "decode_16",
    "decode_64",
    "prefill_2048",
    "ttft_cold_2048",
    "ttft_warm_2048",
    "mixed_64",
    *shared.NAMES,
    *speculation.NAMES,
)


@dataclass
class Report:
    """All that was measured."""

    model: str
    threads: int
    weights: str
    kv_cache_dtype: str
    roofline: Roofline
    results: list[Result]
    memory: dict[str, int]

    def as_json(self) -> dict[str, Any]:
        """The shape that programs read."""
        results = []
        for result in self.results:
            row = asdict(result)
            row["samples"] = [round(sample, 6) for sample in result.samples]
            for key, digits in (("tokens_per_s", 2), ("seconds", 6), ("roofline_share", 4)):
                row[key] = None if row[key] is None else round(row[key], digits)
            results.append(row)
        return {
            "model": self.model, "threads": self.threads, "commit": commit(),
            "weights": self.weights, "kv_cache_dtype": self.kv_cache_dtype,
            "roofline": self.roofline.as_json(), "memory": self.memory, "results": results,
        }  # fmt: skip


def check_names(names: Sequence[str]) -> tuple[str, ...]:
    """The workloads asked for (none: all); an unknown name is refused."""
    for name in names:
        if name not in NAMES:
            raise unknown_name("workload", name, NAMES)
    return tuple(dict.fromkeys(names))


def bench(
    llm: LLM,
    model: str,
    *,
    names: Sequence[str] = (),
    repeats: int = 3,
    drafting: SpeculativeConfig | None = None,
    starting: Callable[[str], None] = lambda name: None,
) -> tuple[Report, Iterator[Result]]:
    """The report, and an iterator that runs one workload after another (all, or those named) and fills it.

    `starting` is told each name before it runs. drafting: of the workloads of speculation, ngram by default.
    """
    cost = cost_of(llm.model, llm.engine)
    roofline = Roofline(llm.backend.team, cost.step_bytes)
    report = Report(model, llm.backend.threads, llm.model.weights, llm.engine.limits.kv_cache_dtype, roofline, [], {})
    setting = Setting(llm.engine, cost, roofline, repeats)
    return report, _run(llm, report, setting, names, drafting or SpeculativeConfig("ngram"), starting)


def _run(
    llm: LLM,
    report: Report,
    setting: Setting,
    names: Sequence[str],
    drafting: SpeculativeConfig,
    starting: Callable[[str], None],
) -> Iterator[Result]:
    report.roofline.probe("read")
    report.roofline.probe("fma")
    runs: dict[str, Callable[[], tuple[Result, ...]]] = {
        **{name: partial(_one, workloads.decode, setting, name, *sizes) for name, sizes in DECODES.items()},
        **{name: partial(_one, workloads.prefill, setting, name, length) for name, length in PREFILLS.items()},
        "ttft_cold_2048, ttft_warm_2048": lambda: workloads.first_token_times(setting, 2048),
        "mixed_64": lambda: (workloads.mixed(setting, "mixed_64", 64),),
        "shared_64": lambda: (shared.serve(setting, "shared_64"),),
        "shared_64_tight": lambda: (shared.serve_tight(setting, llm, "shared_64_tight"),),
        **{
            name: partial(_one, speculation.compare, llm, drafting, name, setting.repeats) for name in speculation.NAMES
        },
    }
    for name, run in runs.items():
        if names and not set(names) & set(name.split(", ")):
            continue
        starting(name)
        for result in run():
            report.results.append(result)
            yield result
    stats = llm.engine.manager.stats()
    report.memory = {
        "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        * (1 if sys.platform == "darwin" else 1024),
        "weights_bytes": llm.model.weights_bytes,
        "pool_bytes": stats.pool_bytes,
        "bytes_per_token": llm.engine.manager.bytes_per_token,
    }


def _one(workload: Callable[..., Result], *arguments: Any) -> tuple[Result, ...]:
    return (workload(*arguments),)
