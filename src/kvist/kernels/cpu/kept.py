"""Object code that is kept in files: written at once or not at all, checked when read, built by one process alone."""

from __future__ import annotations

import fcntl
import hashlib
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

MAGIC = b"kvist-kernel-3\n"
PATIENCE = 120.0  # seconds that a build waits for another process, which may have been stopped


def read(path: Path) -> bytes | None:
    """A kept object file; None if there is none or it is not what was written."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    body, digest = content[:-32], content[-32:]
    if not body.startswith(MAGIC) or hashlib.sha256(body).digest() != digest:
        return None
    return body[len(MAGIC) :]


def keep(path: Path, code: bytes) -> None:
    """Write atomically; a cache that cannot be written (read-only, full) only means compiling again next time."""
    body = MAGIC + code
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent)
    except OSError:
        return
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(body + hashlib.sha256(body).digest())
        Path(temporary).replace(path)
    except OSError:
        Path(temporary).unlink(missing_ok=True)


@contextmanager
def turn(path: Path) -> Iterator[None]:
    """Wait while another process builds the same file; not for ever, and not where nothing can be written.

    A byte of one file is locked for each that is built; the lock goes with its process.
    """
    place = int.from_bytes(hashlib.sha256(path.name.encode()).digest()[:4], "little")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path.parent / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError:
        yield
        return
    try:
        until = time.monotonic() + PATIENCE
        while not _locked(handle, place) and time.monotonic() < until:
            time.sleep(0.05)
        yield
    finally:
        os.close(handle)


def _locked(handle: int, place: int) -> bool:
    """Try to lock. Where files cannot be locked at all there is nothing to wait for."""
    try:
        fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, place)
    except (BlockingIOError, PermissionError):  # somebody else has it
        return False
    except OSError:
        return True
    return True
