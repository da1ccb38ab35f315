"""How much of the machine others took while an engine was measured. Engines suffer from it very differently."""

from __future__ import annotations

import os
import time
from pathlib import Path

SHORTEST = 0.2  # seconds; the system counts in hundredths


class Disturbance:
    """Cores that everybody but one process kept busy since this was made; what the hypervisor took counts too."""

    def __init__(self, pid: int) -> None:
        self._pid, self._begin, self._others = pid, time.monotonic(), _others(pid)

    def cores(self) -> float | None:
        """On average; None where the system does not tell, or after too short a time."""
        seconds, now = time.monotonic() - self._begin, _others(self._pid)
        if now is None or self._others is None or seconds < SHORTEST:
            return None
        return max(now - self._others, 0.0) / seconds


def _others(pid: int) -> float | None:
    """Seconds of processor time since the start that were not this process's; Linux only."""
    try:
        all_of_them = [int(field) for field in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
        own = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[11:13]
    except (OSError, ValueError, IndexError):
        return None
    user, nice, system, _idle, _waiting, interrupts, soft_interrupts, stolen = all_of_them
    busy = user + nice + system + interrupts + soft_interrupts + stolen
    return (busy - sum(map(int, own))) / float(os.sysconf("SC_CLK_TCK"))
