"""Results that outlive the process: a line of JSON each, found again by the digest of all that they depend on.

::

    {"key": "5f0a...", "result": {...}}

The key covers the version of the code, the model's bytes, the method and what it was measured on, so a result is
never taken for another's, and one file may serve any number of runs. What a kill leaves of a line is cut off.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import stat
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import kvist
from kvist.errors import UsageError


class Store:
    """Results by key, in memory and, with a path, in a file. Use it in a ``with`` statement."""

    def __init__(self, path: Path | None = None) -> None:
        self._found: dict[str, Any] = {}
        self._fd: int | None = None
        if path is not None:
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
            try:
                self._load(path, self._fd)
            except BaseException:
                os.close(self._fd)
                raise

    def get(self, key: str) -> Any:
        """The result, as JSON has it, or None."""
        return self._found.get(key)

    def put(self, key: str, result: Any) -> None:
        """Keep a result; with a file, as a whole line or not at all."""
        data = f"{json.dumps({'key': key, 'result': result})}\n".encode()
        self._found[key] = json.loads(data)["result"]  # as it will be read again
        while self._fd is not None and data:
            data = data[os.write(self._fd, data) :]

    def _load(self, path: Path, fd: int) -> None:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise UsageError(f"{path} is no regular file: give one to keep results in")
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UsageError(f"another run is writing to {path}: wait for it, or give another file") from error
        whole = 0
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if not line.endswith(b"\n") and line.startswith(b'{"key": "'[: len(line)]):
                    os.ftruncate(fd, whole)
                    return
                try:
                    value = json.loads(line)
                    self._found[value["key"]] = value["result"]
                except (ValueError, TypeError, KeyError, RecursionError) as error:
                    raise UsageError(f"{path} line {number} is no result of kvist eval: give another file") from error
                whole += len(line)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


def key_of(*parts: object) -> str:
    """A key: the digest of parts that JSON can tell."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def source_digest() -> str:
    """Of kvist's own code: results of other code are not found again."""
    total = hashlib.sha256()
    for file in sorted(Path(kvist.__file__).parent.rglob("*.py")):
        total.update(file.read_bytes())
    return total.hexdigest()


def model_digest(path: Path) -> str:
    """Of a model's file, or of all files of its folder."""
    total = hashlib.sha256()
    for file in sorted(path.iterdir()) if path.is_dir() else [path]:
        if file.is_file():
            with file.open("rb") as data:
                total.update(f"{file.name} {hashlib.file_digest(data, 'sha256').hexdigest()}\n".encode())
    return total.hexdigest()
