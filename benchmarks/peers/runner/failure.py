"""What a peer may do: fail. Never more than its own cells are lost."""

from __future__ import annotations

import subprocess
from pathlib import Path


class PeerError(Exception):
    """A peer could not be set up, started or measured; the message is one line for below the table."""


def run_logged(command: list[str | Path], log: Path, what: str) -> None:
    """Run a command with its output in a file; PeerError with its last line if it fails."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as file:
        try:
            status = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, check=False).returncode
        except OSError as error:
            raise PeerError(f"{what}: {error}") from error
    if status:
        raise PeerError(f"{what} failed: {last_line(log)} (log: {log.name})")


def last_line(log: Path) -> str:
    """The last line of a log that says anything, cut to a readable length."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines()] if log.exists() else []
    return next((line for line in reversed(lines) if line), "no output")[:200]
