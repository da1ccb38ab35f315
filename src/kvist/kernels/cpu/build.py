"""Build the kernels' object code, in two units side by side: the loop, and attention (about half of the work each).

numba turns a unit's entry into LLVM IR, LLVM turns that into an object file for this very CPU. numba optimises every
function with all it calls, again at each level; so it is told not to, and LLVM's passes run once, at the end. What is
not an entry stays inside its unit. The loop calls attention by its address (see `attention_call`).

``python -m kvist.kernels.cpu.build UNIT FILE`` builds one unit; `build` starts that for one while it builds the other.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from importlib import import_module
from pathlib import Path
from typing import Any

import llvmlite.binding as llvm

UNITS = {"kvist_run": ("interpreter", "run", 4), "kvist_attend": ("attention", "attend", 5)}
"""Symbol of the entry -> its module, its name there, how many int64 arguments it takes."""


def build() -> list[bytes]:
    """Both object files. The second unit is built by another process; if that fails for any reason, by this one."""
    here, there = UNITS
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "unit.o"
        command = [sys.executable, "-m", __name__, there, str(file)]
        helper = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            objects = [build_unit(here)]
            helper.wait()
        finally:
            helper.kill()
            helper.wait()
        objects.append(file.read_bytes() if helper.returncode == 0 and file.exists() else build_unit(there))
    return objects


def build_unit(symbol: str) -> bytes:
    """The object file of one unit, its entry under the name `symbol`."""
    from numba import njit, types
    from numba.core import config

    from kvist.kernels.cpu.math import OPTIONS

    module_name, function_name, count = UNITS[symbol]
    entry = getattr(import_module(f"kvist.kernels.cpu.{module_name}"), function_name)
    level = config.OPT
    config.OPT = type(level)(0)
    try:
        compiled = njit(types.int64(*[types.int64] * count), **OPTIONS)(entry)
    finally:
        config.OPT = level
    result = next(iter(compiled.overloads.values()))
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    module = llvm.parse_assembly(result.library.get_llvm_str())
    for function in module.functions:
        if function.name == result.fndesc.llvm_func_name:
            function.name = symbol
        elif not function.is_declaration:
            function.linkage = "internal"
    for variable in module.global_variables:  # numba's environments, which nothing here reads
        if not variable.is_declaration:
            variable.linkage = "internal"
    machine = target_machine()
    builder = llvm.create_pass_builder(machine, _tuning())
    builder.getModulePassManager().run(module, builder)
    code: bytes = machine.emit_object(module)
    return code


def target_machine() -> Any:
    """LLVM's description of this CPU."""
    target = llvm.Target.from_default_triple()
    features = llvm.get_host_cpu_features().flatten()
    return target.create_target_machine(
        cpu=llvm.get_host_cpu_name(), features=features, opt=3, codemodel="jitdefault", jit=True
    )


def _tuning() -> Any:
    """LLVM's third level. Vectorising loops by itself reorders no sum, since no function is marked fast."""
    options = llvm.create_pipeline_tuning_options(3)
    options.loop_vectorization = True
    options.loop_unrolling = True
    return options


if __name__ == "__main__":
    Path(sys.argv[2]).write_bytes(build_unit(sys.argv[1]))
