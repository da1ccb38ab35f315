"""What was measured, in one JSON file that is written after every measurement, so that a run can be continued."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


class Results:
    """The file `results.json`: settings, engines, measurements, and why some are missing.

    A measurement is of one engine, one case and one round. A failure stays until its case succeeds. A file that was
    measured with other settings is refused, or with `fresh` replaced.
    """

    def __init__(self, file: Path, settings: dict[str, Any], *, fresh: bool = False) -> None:
        self._file = file
        self.data: dict[str, Any] = {"settings": settings, "engines": {}, "measurements": [], "failures": {}}
        if not file.exists():
            return
        found = json.loads(file.read_text())
        other = [name for name in settings if found["settings"].get(name) != settings[name]]
        if other and not fresh:
            name = other[0]
            raise ValueError(
                f"{file.parent} was measured with {name} {found['settings'].get(name)}, not {settings[name]}: "
                "give another --out, or --fresh"
            )
        if not other:
            self.data = found

    def has(self, engine: str, case: str, turn: int) -> bool:
        """Whether this was measured."""
        return any((m["engine"], m["case"], m["round"]) == (engine, case, turn) for m in self.data["measurements"])

    def of(self, engine: str, case: str) -> list[dict[str, Any]]:
        """All rounds of one case of one engine."""
        return [m for m in self.data["measurements"] if (m["engine"], m["case"]) == (engine, case)]

    def failure(self, engine: str, case: str) -> str | None:
        """Why there is no measurement, if it was tried."""
        found: str | None = self.data["failures"].get(engine, {}).get(case)
        return found

    def forget(self, engines: set[str], cases: set[str]) -> None:
        """Drop what was measured of these, to measure it again."""
        kept = [m for m in self.data["measurements"] if not (m["engine"] in engines and m["case"] in cases)]
        self.data["measurements"] = kept

    def about(self, engine: str, about: dict[str, str]) -> None:
        """What an engine says of itself."""
        self.data["engines"][engine] = about

    def add(self, engine: str, case: str, turn: int, reply: dict[str, Any]) -> None:
        """Keep a measurement, at once and for good."""
        self.data["measurements"].append({"engine": engine, "case": case, "round": turn, **reply})
        failures: dict[str, dict[str, str]] = self.data["failures"]
        failures.get(engine, {}).pop(case, None)
        self.data["failures"] = {name: cases for name, cases in failures.items() if cases}
        self.write()

    def fail(self, engine: str, case: str, reason: str) -> None:
        """Keep why a case was not measured."""
        self.data["failures"].setdefault(engine, {})[case] = reason
        self.write()

    def write(self) -> None:
        """Replace the file as a whole: a kill leaves the old or the new one."""
        self._file.parent.mkdir(parents=True, exist_ok=True)
        partial = self._file.with_suffix(".partial")
        partial.write_text(json.dumps(self.data, indent=1) + "\n")
        partial.replace(self._file)
