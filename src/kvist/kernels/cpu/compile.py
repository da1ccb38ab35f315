"""The kernels, compiled once per machine and loaded in a hundredth of a second ever after.

Object code (see `build`) is kept in the user's cache directory, a file a unit, under a key of everything it depends on:
the kernels' sources, numba's and llvmlite's versions, the CPU and its features. A warm start needs llvmlite alone:
numba is not even imported. A file carries its own SHA-256; a damaged one is compiled again.
"""

from __future__ import annotations

import ctypes
import hashlib
from collections.abc import Callable, Iterable
from importlib import metadata, resources
from pathlib import Path
from typing import Any

import llvmlite.binding as llvm

from kvist.kernels.cpu.build import ENTRY, Build, Target
from kvist.kernels.cpu.kept import MAGIC, keep, read
from kvist.paths import cache_dir


class Kernels:
    """The compiled units, each built when it is first asked for, or earlier if `prepare` is told.

    on_compile is called when something has to be built, which takes a while. target: the CPU to build for (this one).
    """

    def __init__(self, on_compile: Callable[[], None] | None = None, target: Target | None = None) -> None:
        self._on_compile, self._target = on_compile, target or Target.host()
        self._digest = _digest(self._target)
        self._builds: dict[str, Build] = {}
        self._engines: dict[str, Any] = {}  # they own the code
        self.prepare(["run"])

    def prepare(self, units: Iterable[str]) -> None:
        """Begin to build what is not there yet."""
        for unit in units:
            if unit not in self._engines and unit not in self._builds and not self._path(unit).exists():
                self._begin(unit)

    def address(self, unit: str) -> int:
        """Where the entry of a unit is."""
        if unit not in self._engines:
            self._engines[unit] = self._load(unit)
        address: int = self._engines[unit].get_function_address(ENTRY)
        return address

    def run(self, action: int, board: int, tid: int) -> int:
        """Do something with a team's board as thread `tid` (see `board`). Releases the GIL."""
        result, info = ctypes.c_int64(0), ctypes.c_void_p(0)
        status = self._entry(ctypes.addressof(result), ctypes.addressof(info), action, board, tid, 0)
        if status != 0:
            raise RuntimeError(f"compiled kernel returned status {status}")
        return result.value

    def load_loop(self) -> None:
        """Make `run` callable."""
        # numba's calling convention: status f(result*, exception info**, arguments...)
        prototype = ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_void_p, ctypes.c_void_p, *[ctypes.c_int64] * 4)
        self._entry = prototype(self.address("run"))

    def close(self) -> None:
        """End what is still being built; idempotent. Loaded code stays."""
        for build in self._builds.values():
            build.cancel()
        self._builds.clear()

    def _begin(self, unit: str) -> None:
        if self._on_compile is not None:
            self._on_compile()
        self._builds[unit] = Build(unit, self._target, self._path(unit))

    def _load(self, unit: str) -> Any:
        path = self._path(unit)
        code = None if unit in self._builds else read(path)
        if code is None:
            if unit not in self._builds:
                self._begin(unit)
            code = self._builds[unit].result()
            del self._builds[unit]
            if read(path) is None:  # the process that built it could not
                keep(path, code)
        engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), self._target.machine())
        engine.add_object_file(llvm.ObjectFileRef.from_data(code))
        engine.finalize_object()
        return engine

    def _path(self, unit: str) -> Path:
        return cache_dir() / "kernels" / f"{unit}-{self._digest}.o"


def load_kernels(on_compile: Callable[[], None] | None = None, target: Target | None = None) -> Kernels:
    """The kernels for this machine, the loop ready to run."""
    kernels = Kernels(on_compile, target)
    try:
        kernels.load_loop()
    except BaseException:
        kernels.close()
        raise
    return kernels


def _digest(target: Target) -> str:
    """Digest of all that the object code depends on."""
    digest = hashlib.sha256(MAGIC)
    for package in (__package__, "kvist.cache.codec"):
        for file in sorted(resources.files(package).iterdir(), key=lambda file: file.name):
            if file.name.endswith(".py"):
                digest.update(file.name.encode() + b"\0" + file.read_bytes())
    for part in (
        metadata.version("numba"),
        metadata.version("llvmlite"),
        llvm.get_process_triple(),
        target.cpu,
        target.features,
    ):
        digest.update(part.encode() + b"\0")
    return digest.hexdigest()[:24]
