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
from kvist.kernels.cpu.build import Target
from kvist.kernels.cpu.compile import Kernels
from kvist.kernels.cpu.jobs import find_nonfinite
from kvist.kernels.cpu.kept import read
from kvist.kernels.cpu.team import Team
from kvist.kernels.program import Weight
from ops import same_bits

HOST = Target.host()


class Compiler:
    """Stands in for LLVM: gives the object code that the session's backend runs, and notes what was asked for."""

    def __init__(self, code: dict[str, bytes]) -> None:
        self.code, self.told, self.failure = code, 0, None
        self.begun: list[str] = []
        self.running: list[str] = []

    def __call__(self, unit: str, target: Target, kept: Path) -> Compiler:
        """As `Build` is made."""
        assert target == HOST
        self.begun.append(unit)
        self.running.append(unit)
        assert self.told == len(self.begun), "told before compiling"
        return _Running(self, unit)  # type: ignore[return-value]

    def tell(self) -> None:
        self.told += 1

    def load(self) -> int:
        """Load the kernels, see that they work; how often a unit was compiled by now."""
        team = Team(compiler.load_kernels(self.tell), 1)
        weights = [Weight(np.full((1, 16), value, np.float32), "f32") for value in (1.0, np.inf)]
        assert find_nonfinite(team, weights) == [1]
        team.close()
        assert self.running == []
        return len(self.begun)


class _Running:
    """As a `Build`."""

    def __init__(self, owner: Compiler, unit: str) -> None:
        self.owner, self.unit = owner, unit

    def result(self) -> bytes:
        self.cancel()
        if self.owner.failure is not None:
            raise self.owner.failure
        return self.owner.code[self.unit]

    def cancel(self) -> None:
        if self.unit in self.owner.running:
            self.owner.running.remove(self.unit)


@pytest.fixture
def compiled(backend: CpuBackend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Compiler:
    """An empty cache directory, and a compiler that takes no time."""
    code, kernels = {}, Kernels()
    for unit in ("run", "weights_f32"):
        kernels.address(unit)
        found = read(kernels._path(unit))
        assert found is not None
        code[unit] = found
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    stub = Compiler(code)
    monkeypatch.setattr(compiler, "Build", stub)
    return stub


def kept(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "cache" / "kvist" / "kernels").iterdir())


def test_compiled_once(compiled: Compiler, tmp_path: Path) -> None:
    assert [compiled.load() for _ in range(3)] == [2, 2, 2]
    assert compiled.begun == ["run", "weights_f32"], "nothing that nobody asked for"
    digest = compiler._digest(HOST)
    assert [file.name for file in kept(tmp_path)] == [f"run-{digest}.o", f"weights_f32-{digest}.o"]


def test_what_is_prepared_is_begun_once(compiled: Compiler) -> None:
    kernels = Kernels(compiled.tell)
    assert compiled.running == ["run"]
    kernels.prepare(["weights_f32", "run", "weights_f32"])
    assert compiled.running == ["run", "weights_f32"]
    assert kernels.address("weights_f32") == kernels.address("weights_f32") != kernels.address("run") != 0
    kernels.prepare(["weights_f32"])
    assert compiled.begun == ["run", "weights_f32"] and compiled.running == []
    again = Kernels(compiled.tell)
    again.prepare(["weights_f32"])
    assert again.address("weights_f32") > 0
    assert compiled.begun == ["run", "weights_f32"]


def test_closing_ends_what_is_being_built(compiled: Compiler, tmp_path: Path) -> None:
    kernels = Kernels(compiled.tell)
    kernels.prepare(["weights_f32"])
    kernels.close()
    assert compiled.running == []
    kernels.close()
    assert not (tmp_path / "cache").exists() and compiled.load() == 4


@pytest.mark.parametrize("failure", [KeyboardInterrupt(), MemoryError()])
def test_a_load_that_fails_leaves_nothing_running(
    compiled: Compiler, failure: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled.failure = failure  # type: ignore[assignment]
    with pytest.raises(type(failure)):
        compiled.load()
    assert compiled.running == [] and not (tmp_path / "cache").exists()
    compiled.failure = None
    compiled.begun, compiled.told = [], 0
    assert compiled.load() == 2


@pytest.mark.parametrize("unit", ["run", "weights_f32"])
@pytest.mark.parametrize("damage", ["empty", "cut", "short", "magic", "code", "digest", "longer", "folder"])
def test_a_damaged_file_is_compiled_again(compiled: Compiler, tmp_path: Path, damage: str, unit: str) -> None:
    compiled.load()
    files = kept(tmp_path)
    file = next(file for file in files if file.name.startswith(unit))
    good = file.read_bytes()
    flip = {"magic": 3, "code": len(good) // 2, "digest": len(good) - 1}
    if damage in flip:
        at = flip[damage]
        file.write_bytes(good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :])
    elif damage == "folder":
        file.unlink()
        file.mkdir()
        assert [compiled.load(), compiled.load()] == [3, 4], "what cannot be replaced is compiled each time"
        assert kept(tmp_path) == files, "nothing half-written is left"
        return
    else:
        file.write_bytes({"empty": b"", "cut": good[:-100], "short": good[:40], "longer": good + b"x"}[damage])
    assert [compiled.load(), compiled.load()] == [3, 3]
    assert kept(tmp_path) == files and file.read_bytes() == good
    assert compiled.begun[2:] == [unit]


def test_another_unit_s_file_is_not_taken_for_it(compiled: Compiler, tmp_path: Path) -> None:
    """A key is of the sources alone, so the name must say which unit it is."""
    compiled.load()
    run, weights = kept(tmp_path)
    assert run.name.split("-")[1] == weights.name.split("-")[1] and run.read_bytes() != weights.read_bytes()


def test_a_cache_directory_that_cannot_be_made(compiled: Compiler, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("in the way")
    assert [compiled.load(), compiled.load()] == [2, 4]


def test_a_full_disk(compiled: Compiler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int, mode: str) -> object:
        os.close(descriptor)
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fdopen", full)
        assert compiled.load() == 2
    assert kept(tmp_path) == []
    assert [compiled.load(), compiled.load()] == [4, 4]


def test_the_key_names_all_that_the_code_depends_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def key(target: Target = HOST) -> str:
        return compiler._digest(target)

    keys = [key(), key()]
    assert keys[0] == keys[1]
    source, packages = tmp_path / "cpu", ("kvist.kernels.cpu", "kvist.cache.codec")
    for package in packages:
        shutil.copytree(str(resources.files(package)), tmp_path / package.rsplit(".", 1)[1])
    monkeypatch.setattr(compiler.resources, "files", lambda package: tmp_path / package.rsplit(".", 1)[1])
    assert key() == keys[0], "the same sources somewhere else"
    shutil.rmtree(source / "__pycache__", ignore_errors=True)
    assert key() == keys[0]
    for file in sorted(file for folder in ("cpu", "codec") for file in (tmp_path / folder).glob("*.py")):
        before = file.read_bytes()
        file.write_bytes(before + b"\n")
        keys.append(key())
        file.write_bytes(before)
    (source / "tile.py").rename(source / "tiles.py")
    keys.append(key())
    (source / "tiles.py").rename(source / "tile.py")
    with monkeypatch.context() as patch:
        patch.setattr(compiler.llvm, "get_process_triple", lambda: "another")
        keys.append(key())
    keys += [key(Target("another", HOST.features)), key(Target(HOST.cpu, HOST.features + ",-avx512f"))]
    for package in ("numba", "llvmlite"):
        with monkeypatch.context() as patch:
            true = compiler.metadata.version
            patch.setattr(compiler.metadata, "version", lambda name, p=package, t=true: "0.0" if name == p else t(name))
            keys.append(key())
    assert len(set(keys)) == len(keys) - 1


def test_the_host_is_told_apart_by_its_name_and_its_features(monkeypatch: pytest.MonkeyPatch) -> None:
    from kvist.kernels.cpu import build

    assert Target.host() == HOST
    with monkeypatch.context() as patch:
        patch.setattr(build.llvm, "get_host_cpu_name", lambda: "another")
        assert Target.host() == Target("another", HOST.features)
    features = build.llvm.get_host_cpu_features()
    first = next(iter(features))
    features[first] = not features[first]
    monkeypatch.setattr(build.llvm, "get_host_cpu_features", lambda: features)
    assert Target.host().features != HOST.features


def test_same_bits_helper_sees_signs_of_zero() -> None:
    """The tests' own comparison can fail."""
    a, b = np.zeros(3, np.float32), -np.zeros(3, np.float32)
    assert np.array_equal(a, b) and not same_bits(a, b) and not same_bits(a, a[:2])
