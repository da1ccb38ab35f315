"""Building a unit in another process: whatever becomes of that process, the unit is there, and the process is gone."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kvist.kernels.cpu import build as building
from kvist.kernels.cpu.build import UNITS, Build, Target
from kvist.kernels.cpu.kept import read
from kvist.kernels.program import BLOCK_TYPES

TARGET, KEPT = Target("some-cpu", "+this,-that"), Path("kept.o")
WRITES = "import sys, pathlib; pathlib.Path(sys.argv[2]).write_bytes('|'.join([sys.argv[1], *sys.argv[3:]]).encode())"
SLEEPS = "import time; time.sleep(60)"

Helper = Callable[[str], list[Any]]


@pytest.fixture
def helper(monkeypatch: pytest.MonkeyPatch) -> Helper:
    """Let another program stand in for the one that builds; gives the list of processes that were started."""
    start = building.subprocess.Popen
    started: list[Any] = []

    def stand_in(program: str) -> list[Any]:
        def popen(command: list[str], **options: Any) -> object:
            assert command[:3] == [sys.executable, "-m", "kvist.kernels.cpu.build"]
            started.append(start([sys.executable, "-c", program, *command[3:]], **options))
            return started[-1]

        monkeypatch.setattr(building.subprocess, "Popen", popen)
        return started

    monkeypatch.setattr(building, "build_unit", lambda unit, target: f"here {unit} {target.cpu}".encode())
    return stand_in


def test_there_is_a_unit_for_every_type() -> None:
    held = ("f32", "f16", "bf16", *BLOCK_TYPES)
    assert set(UNITS) == {
        "run", "choosing", *(f"{u}_{t}" for u in ("attend", "observe", "best") for t in held[:3]), *(f"weights_{t}" for t in held), *(f"experts_{t}" for t in held),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("program", "code"),
    [
        (WRITES, b"weights_f16|some-cpu|+this,-that|kept.o"),
        ("raise SystemExit(1)", b"here weights_f16 some-cpu"),
        ("pass", b"here weights_f16 some-cpu"),  # it ends well and leaves nothing
        (WRITES + "; raise SystemExit(3)", b"here weights_f16 some-cpu"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", b"here weights_f16 some-cpu"),
    ],
)
def test_a_unit_is_built_by_another_process_or_else_here(helper: Helper, program: str, code: bytes) -> None:
    started = helper(program)
    build = Build("weights_f16", TARGET, KEPT)
    folder = Path(started[0].args[4]).parent
    assert folder.is_dir()
    assert build.result() == code
    assert started[0].poll() is not None and not folder.exists()


def test_the_process_that_builds_does(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """For real, and for the target it was given: nothing falls back on this process unnoticed."""

    def unwanted(unit: str, target: Target) -> bytes:
        raise AssertionError("built here")

    monkeypatch.setattr(building, "build_unit", unwanted)
    code = Build("weights_f32", Target.host(), tmp_path / "kernels" / "unit.o").result()
    assert code.startswith(b"\x7fELF") and building.ENTRY.encode() in code
    assert read(tmp_path / "kernels" / "unit.o") == code


def test_what_is_built_here_is_built_with_numbas_own_parts() -> None:
    """For another numba, whose parts are others than `translate.without_code` knows."""
    code = building.build_unit("weights_f32", Target.host())
    assert code.startswith(b"\x7fELF") and building.ENTRY.encode() in code


def test_builds_run_side_by_side(helper: Helper, tmp_path: Path) -> None:
    """Each waits for the other one's mark: one after the other they would never end."""
    helper(
        "import sys, pathlib, time\n"
        f"here = pathlib.Path({str(tmp_path)!r})\n"
        "(here / sys.argv[1]).touch()\n"
        "while len(list(here.iterdir())) < 2: time.sleep(0.01)\n"
        "pathlib.Path(sys.argv[2]).write_bytes(sys.argv[1].encode())\n"
    )
    builds = [Build(unit, TARGET, KEPT) for unit in ("run", "attend_f16")]
    assert [build.result() for build in builds] == [b"run", b"attend_f16"]


def test_a_cancelled_build_leaves_nothing(helper: Helper) -> None:
    started = helper(SLEEPS)
    build = Build("run", TARGET, KEPT)
    folder = Path(started[0].args[4]).parent
    assert started[0].poll() is None
    build.cancel()
    assert started[0].poll() is not None and not folder.exists()
    build.cancel()


def test_an_interrupted_build_leaves_nothing(helper: Helper, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C while the other process works, and while this one does its work."""
    started = helper(SLEEPS)
    build = Build("run", TARGET, KEPT)
    process, wait = started[0], started[0].wait
    interrupts = [KeyboardInterrupt()]

    def interrupted(timeout: float | None = None) -> int:
        if interrupts:
            raise interrupts.pop()
        return int(wait(timeout))

    process.wait = interrupted
    with pytest.raises(KeyboardInterrupt):
        build.result()
    assert process.poll() is not None and not Path(process.args[4]).parent.exists()

    def no(unit: str, target: Target) -> bytes:
        raise KeyboardInterrupt

    started = helper("raise SystemExit(1)")
    monkeypatch.setattr(building, "build_unit", no)
    build = Build("run", TARGET, KEPT)
    with pytest.raises(KeyboardInterrupt):
        build.result()
    assert started[-1].poll() is not None and not Path(started[-1].args[4]).parent.exists()
