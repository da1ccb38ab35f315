"""A real server in a process of its own, for tests that are its clients."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

# tools, as chat completions take them
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "enum": ["Oslo", "Umea"]}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
CLOCK = {"type": "function", "function": {"name": "get_time", "parameters": {"type": "object", "properties": {}}}}

KVIST = str(Path(sys.executable).with_name("kvist"))
SERVES = re.compile(r"at (http://\S+)")


@dataclass(frozen=True)
class Served:
    """A server that runs: where, its process, and the file that its standard error goes to."""

    url: str
    process: subprocess.Popen[bytes]
    log: Path
    key: str | None = None

    def client(self, **options: object) -> httpx.Client:
        headers = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        return httpx.Client(base_url=self.url, headers=headers, timeout=120, **options)

    def stop(self, number: int = signal.SIGTERM, seconds: float = 30) -> int:
        self.process.send_signal(number)
        return self.process.wait(seconds)

    def settled(self, seconds: float = 10) -> dict[str, object]:
        """`/cache`, once nothing runs."""
        with self.client() as client:
            end = time.monotonic() + seconds
            while True:
                now = client.get("/cache").json()
                if not now["requests"]["running"] and not now["requests"]["waiting"]:
                    return now
                assert time.monotonic() < end, now
                time.sleep(0.02)


@contextmanager
def serving(
    model: str, *arguments: str, key: str | None = None, env: dict[str, str] | None = None,
    program: Sequence[str] = (KVIST,),
) -> Iterator[Served]:  # fmt: skip
    """A server on a free port, ready to answer; it is stopped in the end, whatever happened. program: runs kvist."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        keys = ["--api-key", key] if key else []
        with log.open("wb") as file:
            process = subprocess.Popen(
                [*program, "serve", str(model), "--port", "0", *keys, *arguments],
                stdout=subprocess.DEVNULL, stderr=file, stdin=subprocess.DEVNULL, env={**os.environ, **(env or {})},
            )  # fmt: skip
        try:
            yield Served(_address(process, log), process, log, key)
        finally:
            if process.poll() is None:
                process.terminate()
                try:
                    process.wait(30)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()


def _address(process: subprocess.Popen[bytes], log: Path) -> str:
    end = time.monotonic() + 300  # units may have to be compiled
    while True:
        found = SERVES.search(log.read_text())
        if found:
            return found[1]
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < end, log.read_text()
        time.sleep(0.02)
