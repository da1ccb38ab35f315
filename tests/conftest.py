"""What all tests share: backends, the real model, and a proof of every cache's invariants when a test is over."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # `tiny` and `steps`, the tests' own helpers

from kvist.cache.manager import CacheManager
from kvist.errors import InternalError, KvistError
from kvist.kernels.cpu.backend import CpuBackend
from kvist.kernels.cpu.build import UNITS
from kvist.models import hub

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in a job that a shell runs in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)  # what tests start would ignore Ctrl-C as well


@pytest.fixture(scope="session")
def backend() -> Iterator[CpuBackend]:
    """Two threads. All kernels are there: what was not compiled yet is, two units at a time."""
    made = CpuBackend(2)
    units = list(UNITS)
    for unit, following in zip(units, [*units[1:], units[0]], strict=True):
        made.team.prepare([unit, following])
        made.team.unit(unit)
    yield made
    made.close()


@pytest.fixture(scope="session")
def one_thread() -> Iterator[CpuBackend]:
    made = CpuBackend(1)
    yield made
    made.close()


@pytest.fixture(scope="session")
def smollm2_path() -> Path:
    """The default model's file. Where it is not pulled its tests are skipped, but not in CI: there they fail."""
    try:
        return hub.resolve("smollm2")
    except KvistError as error:
        if os.environ.get("CI") == "true":
            pytest.fail(f"CI must have the default model: {error}")
        pytest.skip(f"needs the default model: {error}")


@pytest.fixture(autouse=True)
def every_cache_is_sound(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Check each manager a test makes, when it is closed and when the test is over.

    One that a check inside the test found broken is left alone: the error was seen, or is what the test wanted.
    """
    made: list[CacheManager] = []
    broken: list[CacheManager] = []
    start, close, check = CacheManager.__init__, CacheManager.close, CacheManager.check_integrity

    def checked_start(self: CacheManager, *args: object, **options: object) -> None:
        start(self, *args, **options)  # type: ignore[arg-type]
        made.append(self)

    def noted_check(self: CacheManager) -> None:
        try:
            check(self)
        except InternalError:
            broken.append(self)
            raise

    def checked_close(self: CacheManager) -> None:
        if self not in broken:
            check(self)
        close(self)

    monkeypatch.setattr(CacheManager, "__init__", checked_start)
    monkeypatch.setattr(CacheManager, "check_integrity", noted_check)
    monkeypatch.setattr(CacheManager, "close", checked_close)
    yield
    for manager in made:
        if manager not in broken:
            check(manager)
