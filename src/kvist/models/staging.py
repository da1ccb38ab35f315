"""A place for a model that is being pulled: it becomes the real folder in one rename, or vanishes.

::

    models/.pull-x7k2/lock       held while the pull lives; a folder whose lock is free was left by a killed pull
    models/.pull-x7k2/scratch/   what a downloader needs on the way
    models/.pull-x7k2/content/   becomes models/NAME
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from kvist.errors import DownloadError
from kvist.paths import models_dir

Progress = Callable[[int, int, str], None]
"""Told (bytes done, bytes in all, what is going on), from any thread."""

PREFIX = ".pull-"
FULL = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True)
class Staging:
    """The folders of one pull; see the module."""

    name: str
    root: Path

    @property
    def scratch(self) -> Path:
        """For files that are thrown away."""
        return self.root / "scratch"

    @property
    def content(self) -> Path:
        """For files that make up the model."""
        return self.root / "content"

    def need(self, size: int) -> None:
        """Raise DownloadError unless `size` bytes are free."""
        free = shutil.disk_usage(self.root).free
        if free < size:
            raise DownloadError(
                f"cannot pull {self.name}: it needs {_mb(size)} and {self.root.parent} has {_mb(free)} free; "
                "free some space, or set XDG_CACHE_HOME to a larger disk"
            )

    def publish(self, target: Path) -> None:
        """Make the content the folder `target`, in place of what was there."""
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists():
            target.rename(self.root / "old")
        self.content.rename(target)


@contextmanager
def staging(name: str) -> Iterator[Staging]:
    """A fresh place to pull the model `name` into; whatever happens, nothing of it is left but what was published.

    Raises DownloadError where the disk is full or not writable, or the pull is interrupted with Ctrl-C.
    """
    folder = models_dir()
    root: Path | None = None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _sweep(folder)
        root = Path(tempfile.mkdtemp(prefix=PREFIX, dir=folder))
        with (root / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            stage = Staging(name, root)
            stage.scratch.mkdir()
            stage.content.mkdir()
            yield stage
    except KeyboardInterrupt as error:
        raise DownloadError(f"pull of {name} interrupted, nothing was kept: run `kvist pull {name}` again") from error
    except OSError as error:
        if error.errno in FULL:
            raise disk_full(name) from error
        raise DownloadError(
            f"cannot pull {name} into {folder} ({error.strerror or error}): check permissions, or set XDG_CACHE_HOME"
        ) from error
    finally:
        if root is not None:
            shutil.rmtree(root, ignore_errors=True)


def disk_full(name: str) -> DownloadError:
    """Error for a disk that filled up on the way."""
    return DownloadError(
        f"the disk became full while pulling {name}, nothing was kept: free some space in {models_dir()}, "
        "or set XDG_CACHE_HOME to a larger disk"
    )


def _sweep(folder: Path) -> None:
    """Remove what killed pulls left: staging folders whose lock nobody holds."""
    for left in folder.glob(f"{PREFIX}*"):
        with suppress(OSError):
            with (left / "lock").open("r") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(left, ignore_errors=True)


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_sizes(folder: Path) -> list[int]:
    """Bytes of every file below `folder`; files that vanish meanwhile are left out."""
    sizes = []
    for parent, _, files in os.walk(folder):
        for file in files:
            with suppress(OSError):
                sizes.append((Path(parent) / file).lstat().st_size)
    return sizes


@contextmanager
def watched(measure: Callable[[], int], total: int, what: str, progress: Progress) -> Iterator[None]:
    """Report `measure()` to `progress` five times a second from a thread, while somebody else downloads."""
    stop = threading.Event()

    def watch() -> None:
        while not stop.wait(0.2):
            progress(min(measure(), total), total, what)

    thread = threading.Thread(target=watch, name="kvist-pull-progress", daemon=True)
    progress(0, total, what)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
    progress(total, total, what)


def _mb(size: int) -> str:
    return f"{size / 1e6:,.0f} MB"
