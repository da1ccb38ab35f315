"""The object-code cache: what is damaged is compiled again, what cannot be written does no harm, what it depends on is
in its key.
"""

from __future__ import annotations

import os
import shutil
from importlib import resources
from pathlib import Path

import numpy as np
import pytest

from kvist.kernels.cpu import compile as compiler
from kvist.kernels.cpu.backend import CpuBackend
from kvist.kernels.cpu.jobs import find_nonfinite
from kvist.kernels.cpu.team import Team
from kvist.kernels.program import Weight
from kvist.paths import cache_dir
from ops import same_bits


class Compiler:
    """Stands in for LLVM: gives the object code that the session's backend runs, and counts how often."""

    def __init__(self, code: list[bytes]) -> None:
        self.code, self.calls, self.told = code, 0, 0

    def __call__(self) -> list[bytes]:
        self.calls += 1
        return self.code

    def tell(self) -> None:
        assert self.calls == self.told, "told before compiling"
        self.told += 1

    def load(self) -> int:
        """Load the kernels, see that they work; how often it has compiled by now."""
        team = Team(compiler.load_kernels(self.tell), 1)
        weights = [Weight(np.full((1, 16), value, np.float32), "f32") for value in (1.0, np.inf)]
        assert find_nonfinite(team, weights) == [1]
        team.close()
        assert self.told == self.calls
        return self.calls


@pytest.fixture
def compiled(backend: CpuBackend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Compiler:
    """An empty cache directory, and a compiler that takes no time."""
    code = compiler._read(cache_dir() / "kernels" / f"{compiler._key()}.o") or compiler._compile()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    stub = Compiler(code)
    monkeypatch.setattr(compiler, "_compile", stub)
    return stub


def kept(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "cache" / "kvist" / "kernels").iterdir())


def test_compiled_once(compiled: Compiler, tmp_path: Path) -> None:
    assert [compiled.load() for _ in range(3)] == [1, 1, 1]
    (file,) = kept(tmp_path)
    assert file.name == f"{compiler._key()}.o"


@pytest.mark.parametrize("damage", ["empty", "cut", "short", "magic", "name", "code", "digest", "longer", "folder"])
def test_a_damaged_file_is_compiled_again(compiled: Compiler, tmp_path: Path, damage: str) -> None:
    compiled.load()
    (file,) = kept(tmp_path)
    good = file.read_bytes()
    flip = {"magic": 3, "name": 20, "code": len(good) // 2, "digest": len(good) - 1}
    if damage in flip:
        at = flip[damage]
        file.write_bytes(good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :])
    elif damage == "folder":
        file.unlink()
        file.mkdir()
        assert [compiled.load(), compiled.load()] == [2, 3], "what cannot be replaced is compiled each time"
        assert kept(tmp_path) == [file], "nothing half-written is left"
        return
    else:
        file.write_bytes({"empty": b"", "cut": good[:-100], "short": good[:40], "longer": good + b"x"}[damage])
    assert [compiled.load(), compiled.load()] == [2, 2]
    assert kept(tmp_path) == [file] and file.read_bytes() == good


def test_a_cache_directory_that_cannot_be_made(compiled: Compiler, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("in the way")
    assert [compiled.load(), compiled.load()] == [1, 2]


def test_a_full_disk(compiled: Compiler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int, mode: str) -> object:
        os.close(descriptor)
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(compiler.os, "fdopen", full)
        assert compiled.load() == 1
    assert kept(tmp_path) == []
    assert [compiled.load(), compiled.load()] == [2, 2]


def test_the_key_names_all_that_the_code_depends_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = [compiler._key(), compiler._key()]
    assert keys[0] == keys[1]
    source = tmp_path / "cpu"
    shutil.copytree(str(resources.files("kvist.kernels.cpu")), source)
    monkeypatch.setattr(compiler.resources, "files", lambda package: source)
    assert compiler._key() == keys[0], "the same sources somewhere else"
    shutil.rmtree(source / "__pycache__", ignore_errors=True)
    assert compiler._key() == keys[0]
    for file in sorted(source.glob("*.py")):
        before = file.read_bytes()
        file.write_bytes(before + b"\n")
        keys.append(compiler._key())
        file.write_bytes(before)
    (source / "tile.py").rename(source / "tiles.py")
    keys.append(compiler._key())
    (source / "tiles.py").rename(source / "tile.py")
    for part in ("get_host_cpu_name", "get_process_triple"):
        with monkeypatch.context() as patch:
            patch.setattr(compiler.llvm, part, lambda: "another")
            keys.append(compiler._key())
    with monkeypatch.context() as patch:
        features = compiler.llvm.get_host_cpu_features()
        features["avx512f"] = not features.get("avx512f", False)
        patch.setattr(compiler.llvm, "get_host_cpu_features", lambda: features)
        keys.append(compiler._key())
    for package in ("numba", "llvmlite"):
        with monkeypatch.context() as patch:
            true = compiler.metadata.version
            patch.setattr(compiler.metadata, "version", lambda name, p=package, t=true: "0.0" if name == p else t(name))
            keys.append(compiler._key())
    assert len(set(keys)) == len(keys) - 1


def test_same_bits_helper_sees_signs_of_zero() -> None:
    """The tests' own comparison can fail."""
    a, b = np.zeros(3, np.float32), -np.zeros(3, np.float32)
    assert np.array_equal(a, b) and not same_bits(a, b) and not same_bits(a, a[:2])
