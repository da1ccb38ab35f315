"""The command line as a user meets it: the installed program, in a process of its own."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from tiny import MODELS, write_folder

KVIST = str(Path(sys.executable).with_name("kvist"))

Cli = Callable[..., "CompletedProcess[str]"]


@pytest.fixture(scope="session")
def kvist() -> str:
    """The program's path."""
    return KVIST


@pytest.fixture
def cli() -> Cli:
    """Run `kvist ARGUMENTS` to its end. `env` adds variables. Whatever happens, no traceback is shown."""

    def call(
        *arguments: str, text: str | bytes | None = None, env: dict[str, str] | None = None
    ) -> "CompletedProcess[str]":
        data = text.encode() if isinstance(text, str) else text
        given = {"stdin": subprocess.DEVNULL} if data is None else {"input": data}
        done = subprocess.run(
            [KVIST, *arguments], capture_output=True, env={**os.environ, **(env or {})}, timeout=300, **given
        )
        out, err = done.stdout.decode(), done.stderr.decode()
        assert "Traceback" not in err and "Traceback" not in out, err
        return CompletedProcess(done.args, done.returncode, out, err)

    return call


@pytest.fixture
def refused(cli: Cli) -> Callable[..., str]:
    """Run what must fail with `status`: nothing on standard output, one line on standard error, which is returned."""

    def call(status: int, *arguments: str, **options: object) -> str:
        done = cli(*arguments, **options)
        assert (done.returncode, done.stdout) == (status, ""), done.stderr
        assert done.stderr.startswith("kvist: ") and done.stderr.count("\n") == 1, done.stderr
        return done.stderr

    return call


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny random Llama in a folder; it ends no answer early unless it happens to."""
    return str(write_folder(MODELS["llama"], tmp_path_factory.mktemp("models") / "llama"))
