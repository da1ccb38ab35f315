"""The kernels, compiled once per machine and loaded in a hundredth of a second ever after.

Object code (see `build`) is kept in the user's cache directory under a key of everything it depends on: the kernels'
sources, numba's and llvmlite's versions, the CPU and its features. A warm start needs llvmlite alone: numba is not even
imported. The file carries its own SHA-256; a damaged one is compiled again.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import tempfile
from collections.abc import Callable
from importlib import metadata, resources
from pathlib import Path

import llvmlite.binding as llvm

from kvist.kernels.cpu.build import build, target_machine
from kvist.paths import cache_dir

_MAGIC = b"kvist-kernels-2\n"


class Kernels:
    """The compiled loop as a callable: ``run(table, count, context, tid)``, all int64; it releases the GIL."""

    def __init__(self, objects: list[bytes]) -> None:
        llvm.initialize_native_target()
        llvm.initialize_native_asmprinter()
        self._engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), target_machine())
        for code in objects:
            self._engine.add_object_file(llvm.ObjectFileRef.from_data(code))
        self._engine.finalize_object()
        address = self._engine.get_function_address("kvist_run")
        self.attend_address: int = self._engine.get_function_address("kvist_attend")
        # numba's calling convention: status f(result*, exception info**, arguments...)
        prototype = ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_void_p, ctypes.c_void_p, *[ctypes.c_int64] * 4)
        self._function = prototype(address)

    def run(self, table: int, count: int, context: int, tid: int) -> None:
        """Run the program as thread `tid`; returns when the whole step is done."""
        result, info = ctypes.c_int64(0), ctypes.c_void_p(0)
        status = self._function(ctypes.addressof(result), ctypes.addressof(info), table, count, context, tid)
        if status != 0:
            raise RuntimeError(f"compiled kernel returned status {status}")


def load_kernels(on_compile: Callable[[], None] | None = None) -> Kernels:
    """The kernels for this machine, from the cache or compiled now (`on_compile` is told first: it takes a while)."""
    path = cache_dir() / "kernels" / f"{_key()}.o"
    kept = _read(path)
    if kept is None:
        if on_compile is not None:
            on_compile()
        kept = _compile()
        _keep(path, kept)
    return Kernels(kept)


def _key() -> str:
    """Digest of all that the object code depends on."""
    digest = hashlib.sha256(_MAGIC)
    for file in sorted(resources.files(__package__).iterdir(), key=lambda file: file.name):
        if file.name.endswith(".py"):
            digest.update(file.name.encode() + b"\0" + file.read_bytes())
    for part in (
        metadata.version("numba"),
        metadata.version("llvmlite"),
        llvm.get_process_triple(),
        llvm.get_host_cpu_name(),
        llvm.get_host_cpu_features().flatten(),
    ):
        digest.update(part.encode() + b"\0")
    return digest.hexdigest()[:32]


def _compile() -> list[bytes]:
    """The object files, built now."""
    return build()


def _read(path: Path) -> list[bytes] | None:
    """A kept file's object files; None if there is none or it is not what was written."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    body, digest = content[:-32], content[-32:]
    if not body.startswith(_MAGIC) or hashlib.sha256(body).digest() != digest:
        return None
    sizes, _, code = body[len(_MAGIC) :].partition(b"\n")
    objects = []
    for size in map(int, sizes.split()):
        objects.append(code[:size])
        code = code[size:]
    return objects


def _keep(path: Path, objects: list[bytes]) -> None:
    """Write atomically; a cache that cannot be written (read-only, full) only means compiling again next time."""
    sizes = " ".join(str(len(code)) for code in objects).encode()
    body = _MAGIC + sizes + b"\n" + b"".join(objects)
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
