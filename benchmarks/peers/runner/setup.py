"""From an engine's entry to its running process: environment, weights, script, variables."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from runner.engines import EngineSpec
from runner.environments import Environments
from runner.failure import PeerError, last_line
from runner.say import say
from runner.weights import ADAPTERS, Weights
from runner.worker import Worker

START_SECONDS = 900.0


class Setup:
    """Sets engines up below the folder `work` and starts them, with so many threads on as many cores."""

    def __init__(self, model: Path, checkout: Path, work: Path, threads: int) -> None:
        self._checkout, self._work, self._threads = checkout, work, threads
        self._environments = Environments(work / "envs", work / "logs")
        self._weights = Weights(model, work / "weights", self._environments, work / "logs")

    def prepare(self, engines: Sequence[EngineSpec]) -> None:
        """Install and convert what is missing, so that nothing of it runs beside a measurement."""
        for spec in engines:
            try:
                self._environments.python(spec.environment)
                self._weights.path(spec.weights)
            except PeerError as error:
                say(f"{spec.name}: {error}")

    def start(self, spec: EngineSpec) -> tuple[Worker, dict[str, str]]:
        """A process that has loaded its model, and what it says of itself."""
        python, model = self._environments.python(spec.environment), self._weights.path(spec.weights)
        cores = sorted(os.sched_getaffinity(0))[: self._threads] if hasattr(os, "sched_getaffinity") else []
        log = self._work / "logs" / f"{spec.name}.log"
        variables = self._variables(spec)
        if spec.preload:
            variables["LD_PRELOAD"] = str(python.parent.parent / spec.preload)
        worker = Worker([python, ADAPTERS / spec.script], variables, cores, log)
        try:
            message = {"model": str(model), "threads": self._threads, "options": dict(spec.options)}
            about = worker.ask(message, START_SECONDS)["about"]
        except BaseException:
            worker.close()
            raise
        if spec.environment == "kvist":
            about["commit"] = commit(self._checkout)
        return worker, about

    def _variables(self, spec: EngineSpec) -> dict[str, str]:
        return {
            "OMP_NUM_THREADS": str(self._threads),
            "HF_HUB_OFFLINE": "1",
            "VLLM_CACHE_ROOT": str(self._work / "vllm-cache"),
            "PYTHONPATH": str(self._checkout / "src") if spec.environment == "kvist" else "",
        }


def pulled(checkout: Path, logs: Path) -> Path:
    """The default model's file, pulled by kvist if it is missing."""
    code = "from kvist.models.hub import pull; print(pull('smollm2'))"
    log = logs / "pull.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as errors:
        found = subprocess.run(
            [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=errors, check=False,
            env={**os.environ, "PYTHONPATH": str(checkout / "src")},
        )  # fmt: skip
    if found.returncode:
        raise PeerError(f"kvist cannot pull smollm2 (is this its Python?): {last_line(log)}")
    return Path(found.stdout.decode().splitlines()[-1])


def commit(checkout: Path) -> str:
    """The commit of a checkout; "+" if files are changed."""
    command = ["git", "-C", str(checkout), "describe", "--always", "--dirty=+"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"
