"""Build the kernels' object code, unit by unit: the loop, attention for a type of pages, weights of a type.

A model needs the loop and two or three more units; only those are built, side by side in processes of their own. numba
turns a unit's entry into LLVM IR (see `translate`), LLVM turns that into an object file for this very CPU. numba would
optimise every function with all it calls, again at each level; so it is told not to, and LLVM's passes run once, at the
end. What is not the entry stays inside its unit, inlined as LLVM thinks best where `math` says nothing else. The loop
calls the others by their addresses (see `unit_call`).

``python -m kvist.kernels.cpu.build UNIT FILE CPU FEATURES KEPT`` builds one unit, or finds it kept by a process that
built it just before.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import llvmlite.binding as llvm

from kvist.kernels.cpu.abi import DTYPES
from kvist.kernels.cpu.kept import keep, read, turn
from kvist.kernels.program import BLOCK_TYPES

ENTRY = "kvist_entry"  # symbol of a unit's entry: status f(result*, exception info**, four int64)
UNITS: dict[str, tuple[str, str | None]] = {
    "run": ("board", None),
    "choosing": ("choosing", None),
    **{f"attend_{name}": ("attention", name) for name in DTYPES},
    **{f"observe_{name}": ("observe", name) for name in DTYPES},
    **{f"best_{name}": ("best_pages", name) for name in DTYPES},
    **{f"weights_{name}": ("weights", name) for name in (*DTYPES, *BLOCK_TYPES)},
    **{f"experts_{name}": ("experts", name) for name in (*DTYPES, *BLOCK_TYPES)},
}
"""Unit -> its module, and what the module's `make_unit` is given (None: the entry is `run` itself)."""
PACKED_UNITS = {"attend": "attention", "seal": "seal"}
"""The same for pages of packed layers: exact, K, V, as in ``attend_f16_int5_int4`` and ``seal_f16_int5_int4``."""


@dataclass(frozen=True, slots=True)
class Target:
    """The CPU that code is made for, as LLVM names it."""

    cpu: str
    features: str

    @staticmethod
    def host() -> Target:
        """This machine."""
        return Target(llvm.get_host_cpu_name(), llvm.get_host_cpu_features().flatten())

    def machine(self) -> Any:
        """LLVM's description."""
        llvm.initialize_native_target()
        llvm.initialize_native_asmprinter()
        return llvm.Target.from_default_triple().create_target_machine(
            cpu=self.cpu, features=self.features, opt=3, codemodel="jitdefault", jit=True
        )


class Build:
    """A unit that is being built by another process. kept: where that process keeps it, for others that want it too."""

    def __init__(self, unit: str, target: Target, kept: Path) -> None:
        self._unit, self._target = unit, target
        self._folder = tempfile.TemporaryDirectory()
        self._file = Path(self._folder.name) / "unit.o"
        command = [sys.executable, "-m", __name__, unit, str(self._file), target.cpu, target.features, str(kept)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )

    def result(self) -> bytes:
        """The object file. If the process fails for any reason, this one builds it (and shows the reason)."""
        try:
            self._process.wait()
            if self._process.returncode == 0 and self._file.exists():
                return self._file.read_bytes()
            return build_unit(self._unit, self._target)
        finally:
            self.cancel()

    def cancel(self) -> None:
        """End the process; idempotent."""
        self._process.kill()
        self._process.wait()
        self._folder.cleanup()


def build_unit(unit: str, target: Target) -> bytes:
    """The object file of one unit."""
    machine = target.machine()
    code: bytes = machine.emit_object(make_module(unit, machine, target.features))
    return code


def make_module(unit: str, machine: Any, features: str = "") -> Any:
    """One unit in LLVM's words, optimised for a machine (which need not be this one) that has these features."""
    from kvist.kernels.cpu import vector
    from kvist.kernels.cpu.translate import translate

    vector.FEATURES.clear()
    vector.FEATURES.update(name[1:] for name in features.split(",") if name.startswith("+"))
    kind, _, rest = unit.partition("_")
    module_name, argument = UNITS[unit] if unit in UNITS else (PACKED_UNITS[kind], rest)
    source = import_module(f"kvist.kernels.cpu.{module_name}")
    text, entry, placed = translate(source.run if argument is None else source.make_unit(argument))
    module = llvm.parse_assembly(text)
    module.triple, module.data_layout = machine.triple, str(machine.target_data)
    for function in module.functions:
        if function.name == entry:
            function.name = ENTRY
        elif not function.is_declaration:
            function.linkage = "internal"
        if function.name in placed:
            function.add_function_attribute(placed[function.name])
    for variable in module.global_variables:  # numba's environments, which nothing here reads
        if not variable.is_declaration:
            variable.linkage = "internal"
    builder = llvm.create_pass_builder(machine, _tuning())
    builder.getModulePassManager().run(module, builder)
    return module


def _tuning() -> Any:
    """LLVM's third level. Vectorising loops by itself reorders no sum, since no function is marked fast."""
    options = llvm.create_pipeline_tuning_options(3)
    options.loop_vectorization = True
    options.loop_unrolling = True
    return options


def _main(unit: str, file: str, cpu: str, features: str, kept: str) -> None:
    with turn(Path(kept)):
        code = read(Path(kept))
        if code is None:
            from kvist.kernels.cpu.translate import without_code

            with without_code():
                code = build_unit(unit, Target(cpu, features))
            keep(Path(kept), code)
    Path(file).write_bytes(code)


if __name__ == "__main__":
    _main(*sys.argv[1:])
