"""Progress, as plain lines on standard error."""

from __future__ import annotations

import sys
import time

_BEGIN = time.monotonic()


def say(line: str) -> None:
    """One line, after the minutes since the start."""
    passed = int(time.monotonic() - _BEGIN)
    print(f"[{passed // 60:3d}:{passed % 60:02d}] {line}", file=sys.stderr, flush=True)
