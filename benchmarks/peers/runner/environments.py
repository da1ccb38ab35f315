"""An environment of its own for each peer, made once from its locked requirements."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

from runner.failure import PeerError, run_logged
from runner.say import say

REQUIREMENTS = Path(__file__).parent.parent / "requirements"


class Environments:
    """The Pythons of the peers, below `folder`; a failed one is not tried again by this program run."""

    def __init__(self, folder: Path, logs: Path) -> None:
        self._folder, self._logs = folder, logs
        self._failed: dict[str, PeerError] = {}

    def python(self, name: str) -> Path:
        """The Python of an environment, made if it is missing or its requirements changed.

        A lock lists everything, so that pip resolves nothing: packages that a peer declares and cannot use stay out.
        """
        if name == "kvist":
            return Path(sys.executable)
        if name in self._failed:
            raise self._failed[name]
        lock = REQUIREMENTS / f"requirements-{name}.txt"
        digest = hashlib.sha256(lock.read_bytes()).hexdigest()
        folder = self._folder / name
        python, mark = folder / "bin" / "python", folder / "installed"
        if mark.exists() and mark.read_text() == digest:
            return python
        say(f"installing {name}" + (" (compiles llama.cpp: minutes)" if name == "llamacpp" else ""))
        try:
            if not python.exists():
                run_logged([sys.executable, "-m", "venv", folder], self._logs / f"venv-{name}.log", f"venv {name}")
            pip: list[str | Path] = [python, "-m", "pip", "install", "--disable-pip-version-check", "--no-deps"]
            run_logged([*pip, "-r", lock], self._logs / f"pip-{name}.log", f"installing {name}")
        except PeerError as error:
            self._failed[name] = error
            raise
        mark.write_text(digest)
        return python
