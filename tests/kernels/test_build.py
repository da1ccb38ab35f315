"""Building in two processes: whatever becomes of the second one, both units are there."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from kvist.kernels.cpu import build as building

WRITES = "import sys, pathlib; pathlib.Path(sys.argv[2]).write_bytes(b'from ' + sys.argv[1].encode())"


@pytest.mark.parametrize(
    ("program", "second"),
    [
        (WRITES, b"from kvist_attend"),
        ("raise SystemExit(1)", b"here kvist_attend"),
        ("pass", b"here kvist_attend"),  # it ends well and leaves nothing
        (WRITES + "; raise SystemExit(3)", b"here kvist_attend"),
    ],
)
def test_the_second_unit_is_built_by_a_helper_or_else_here(
    program: str, second: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = building.subprocess.Popen
    monkeypatch.setattr(building, "build_unit", lambda symbol: b"here " + symbol.encode())
    monkeypatch.setattr(
        building.subprocess,
        "Popen",
        lambda command, **options: start([sys.executable, "-c", program, *command[3:]], **options),
    )
    assert building.build() == [b"here kvist_run", second]


def test_an_interrupted_build_leaves_no_helper(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    helpers = []
    start = building.subprocess.Popen

    def slow(command: list[str], **options: int) -> object:
        helpers.append(start([sys.executable, "-c", "import time; time.sleep(60)"], **options))
        return helpers[-1]

    def interrupted(symbol: str) -> bytes:
        raise KeyboardInterrupt

    monkeypatch.setattr(building.subprocess, "Popen", slow)
    monkeypatch.setattr(building, "build_unit", interrupted)
    with pytest.raises(KeyboardInterrupt):
        building.build()
    assert helpers[0].poll() is not None
