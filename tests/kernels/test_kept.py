"""Files of object code: one process builds what several want, and nobody waits for ever."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from kvist.kernels.cpu import kept
from kvist.kernels.cpu.kept import keep, read, turn

BUILDS = """
import os, sys, time
from kvist.kernels.cpu import build
build.build_unit = lambda unit, target: time.sleep(1) or f"{unit} by {os.getpid()}".encode()
build._main(*sys.argv[1:])
"""
HOLDS = """
import sys, time
from pathlib import Path
from kvist.kernels.cpu.kept import turn
with turn(Path(sys.argv[1])):
    print("mine", flush=True)
    time.sleep(60)
"""


def test_two_that_want_the_same_build_it_once(tmp_path: Path) -> None:
    file = tmp_path / "kernels" / "weights_f32.o"
    outs = [tmp_path / f"{i}.o" for i in range(3)]
    running = [
        subprocess.Popen([sys.executable, "-c", BUILDS, "weights_f32", str(out), "cpu", "", str(file)]) for out in outs
    ]
    assert [process.wait(60) for process in running] == [0, 0, 0]
    built = {out.read_bytes() for out in outs}
    assert built == {read(file)}, "what was written by the same process, for all"


def test_nobody_waits_for_another_unit_nor_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held = tmp_path / "held.o"
    with subprocess.Popen([sys.executable, "-c", HOLDS, str(held)], stdout=subprocess.PIPE) as holder:
        try:
            assert holder.stdout is not None and holder.stdout.readline() == b"mine\n"
            with turn(tmp_path / "other.o"):  # at once, or the test takes two minutes
                pass
            monkeypatch.setattr(kept, "PATIENCE", 0.3)
            begun = time.monotonic()
            with turn(held):
                assert time.monotonic() - begun >= 0.3
        finally:
            holder.kill()
    monkeypatch.setattr(kept, "PATIENCE", 60.0)
    with turn(held):  # a lock goes with its process
        assert time.monotonic() - begun < 30


def test_where_nothing_can_be_written_nobody_waits(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with turn(tmp_path / "file" / "unit.o"):
        keep(tmp_path / "file" / "unit.o", b"code")
    assert read(tmp_path / "file" / "unit.o") is None
