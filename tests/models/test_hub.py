"""Pulling through pip, finding and listing models: whatever goes wrong, nothing half-written is left."""

import errno
import importlib.util
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from kvist.errors import DownloadError, UnknownNameError, UsageError
from kvist.models import staging, wheel
from kvist.models.aliases import ALIASES
from kvist.models.hub import installed, pull, resolve


def left(cache: Path) -> list[str]:
    """Everything below the models' folder."""
    return sorted(str(path.relative_to(cache)) for path in cache.rglob("*")) if cache.exists() else []


def fails(cache: Path, cause: str) -> str:
    """Pull the tiny model, expect one line with `cause`, and nothing left."""
    with pytest.raises(DownloadError, match=cause) as caught:
        pull("tiny")
    assert "\n" not in str(caught.value)
    assert left(cache) == []
    return str(caught.value)


def test_pull_through_pip(cache: Path, registry: Any) -> None:
    with pytest.raises(UsageError, match="run `kvist pull tiny`"):
        resolve("tiny")
    seen: list[tuple[int, int, str]] = []
    path = pull("tiny", lambda *step: seen.append(step))
    assert path == cache / "tiny" / "tiny.gguf" == resolve("tiny")
    assert left(cache) == ["tiny", "tiny/LICENSE", "tiny/tiny.gguf"]
    assert {what for _, _, what in seen} == {"downloading", "checking", "unpacking"}
    assert all(0 <= done <= total for done, total, _ in seen)
    (entry,) = installed()
    assert (entry.name, entry.path, entry.bytes, entry.licence, entry.complete) == (
        "tiny",
        path,
        5024,
        "Apache-2.0",
        True,
    )


def test_a_pulled_model_is_left_alone_and_a_damaged_one_replaced(cache: Path, registry: Any) -> None:
    path = pull("tiny")
    before = path.stat().st_ino
    shutil.move(registry.wheel, registry.folder / "hidden")
    assert pull("tiny").stat().st_ino == before
    shutil.move(registry.folder / "hidden", registry.wheel)
    good = path.read_bytes()
    path.write_bytes(b"x" + good[1:])
    assert pull("tiny").read_bytes() == good
    path.write_bytes(good[:100])
    assert [entry.complete for entry in installed()] == [False]
    with pytest.raises(UsageError, match="not pulled"):
        resolve("tiny")
    assert pull("tiny").read_bytes() == good
    assert left(cache) == ["tiny", "tiny/LICENSE", "tiny/tiny.gguf"]


def test_wrong_checksums(cache: Path, registry: Any, change: Any) -> None:
    change(wheel_sha256="0" * 64)
    fails(cache, "has the SHA-256 .* nothing was kept")
    change(file_sha256="0" * 64)
    fails(cache, "another SHA-256")
    change(member="kvist_tiny_model/none.gguf")
    fails(cache, "does not hold")


def test_package_that_the_index_does_not_have(cache: Path, registry: Any, change: Any) -> None:
    change(version="9.9")
    fails(cache, "pip finds no kvist-tiny-model 9.9; check the network")
    assert "pip says 'ERROR: odd'" in str(wheel._pip_failed(registry.alias, "x\nERROR: odd\n"))
    assert "pip says 'no output'" in str(wheel._pip_failed(registry.alias, ""))


def test_no_network(cache: Path, registry: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_FIND_LINKS", str(cache))
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "1")
    fails(cache, "cannot reach the package index")


def test_no_pip(cache: Path, registry: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as context:
        context.setattr(importlib.util, "find_spec", lambda name: None)
        message = fails(cache, "has no pip")
    for command in ("uv pip install pip", "-m ensurepip", "pip download --no-deps kvist-tiny-model==1.0", "unzip -j"):
        assert command in message
    without = registry.folder / "python"
    without.write_text(f'#!/bin/sh\nexec {sys.executable} -I -S "$@"\n')  # no site-packages, so no pip
    without.chmod(0o755)
    with monkeypatch.context() as context:
        context.setattr(sys, "executable", str(without))
        fails(cache, "has no pip")


def test_the_commands_for_a_python_without_pip_work(cache: Path, registry: Any) -> None:
    if shutil.which("unzip") is None:
        pytest.skip("needs unzip")
    commands = re.findall("`([^`]*)`", str(wheel._no_pip(registry.alias)))[-1]
    _, offline = commands.split(" && ", 1)  # the download itself is pip's
    subprocess.run(offline, shell=True, cwd=registry.folder, check=True, stdout=subprocess.DEVNULL)
    assert resolve("tiny") == cache / "tiny" / "tiny.gguf"
    assert [entry.complete for entry in installed()] == [True]


def test_full_disk(cache: Path, registry: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    class Usage:
        free = 100

    with monkeypatch.context() as context:
        context.setattr(shutil, "disk_usage", lambda path: Usage)
        fails(cache, "needs 0 MB and .* free; free some space")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as context:
        context.setattr(wheel, "_unpack", full)
        fails(cache, "disk became full .* nothing was kept")
    with monkeypatch.context() as context:
        context.setattr(staging.Staging, "publish", full)
        fails(cache, "disk became full")
    assert "full" in str(wheel._pip_failed(registry.alias, "ERROR: [Errno 28] No space left on device"))


def test_folder_that_cannot_be_written(cache: Path, registry: Any) -> None:
    cache.parent.parent.mkdir(parents=True)
    cache.parent.write_text("a file")
    with pytest.raises(DownloadError, match="set XDG_CACHE_HOME"):
        pull("tiny")


SLOW = """
import sys, time
from kvist.models import hub, wheel
def slow(alias, stage):
    (stage.scratch / "half").write_bytes(b"x" * 100)
    print("ready", flush=True)
    time.sleep(60)
wheel._pip_download = slow
try:
    hub.pull("smollm2")
except hub_error as error:
    print(error)
""".replace("hub_error", "__import__('kvist.errors').errors.DownloadError")


def start_slow_pull(cache: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", SLOW], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    assert len(left(cache)) > 0
    return process


def test_interrupted(cache: Path) -> None:
    with start_slow_pull(cache) as process:
        process.send_signal(signal.SIGINT)
        output = process.communicate(timeout=20)[0]
    assert "pull of smollm2 interrupted, nothing was kept" in output
    assert left(cache) == []


def test_killed_and_swept_by_the_next_pull(cache: Path, registry: Any) -> None:
    with start_slow_pull(cache) as process:
        process.kill()
    assert len(left(cache)) > 0
    assert installed() == []
    with start_slow_pull(cache) as alive:  # sweeps the dead one's folder
        assert len(list(cache.iterdir())) == 1
        pull("tiny")  # leaves the living one's folder alone
        assert sorted(path.name.startswith(".pull-") for path in cache.iterdir()) == [False, True]
        alive.kill()
    pull("tiny")
    shutil.rmtree(cache / "tiny")
    pull("tiny")
    assert left(cache) == ["tiny", "tiny/LICENSE", "tiny/tiny.gguf"]


def test_interrupt_ends_pip(cache: Path, registry: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = registry.folder / "python"
    slow.write_text("#!/bin/sh\nexec sleep 30\n")
    slow.chmod(0o755)
    started: list[subprocess.Popen[bytes]] = []
    real = subprocess.Popen.communicate

    def interrupted(process: subprocess.Popen[bytes], *arguments: Any, **named: Any) -> Any:
        started.append(process)
        if len(started) == 1:
            raise KeyboardInterrupt
        return real(process, *arguments, **named)

    monkeypatch.setattr(sys, "executable", str(slow))
    monkeypatch.setattr(subprocess.Popen, "communicate", interrupted)
    begin = time.monotonic()
    fails(cache, "interrupted")
    assert started[0].returncode == -signal.SIGKILL
    assert time.monotonic() - begin < 10


def test_unknown_names(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "llama.gguf").touch()
    assert resolve("llama.gguf") == Path("llama.gguf")
    assert resolve(str(tmp_path)) == tmp_path
    for name, hint in [
        ("smolm2", "did you mean smollm2"),
        ("lama.gguf", "did you mean llama.gguf"),
        (f"{tmp_path}/lama.gguf", f"did you mean {tmp_path}/llama.gguf"),
        ("zzz", "known are smollm2"),
        ("", "known are smollm2"),
        ("\0", "known are smollm2"),
        ("x" * 5000, "known are smollm2"),
        ("~nobody-here/x", "known are smollm2"),
    ]:
        with pytest.raises(UnknownNameError, match=hint):
            resolve(name)
    with pytest.raises(UsageError, match="run `kvist pull org/name`"):
        resolve("org/name")
    for name in ("smolm2", "../x/y", "a/../b", "/etc/passwd", "a/b:../c.gguf"):
        with pytest.raises(UnknownNameError, match="or pull ORG/NAME"):
            pull(name)


def test_the_table_of_aliases() -> None:
    for name, alias in ALIASES.items():
        assert name == alias.name and alias.file.endswith(".gguf")
        assert len(alias.wheel_sha256) == len(alias.file_sha256) == 64
        assert alias.wheel.startswith(alias.package.replace("-", "_")) and alias.version in alias.wheel


@pytest.mark.model
def test_the_real_model_is_what_the_table_says(monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        path = resolve("smollm2")
    except UsageError:
        pytest.skip("needs the default model: run `kvist pull smollm2`")
    monkeypatch.setattr(wheel, "_pip_download", lambda *_: pytest.fail("nothing is to be downloaded"))
    assert staging.sha256(path) == ALIASES["smollm2"].file_sha256
    assert pull("smollm2") == path
