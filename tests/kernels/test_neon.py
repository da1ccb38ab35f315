"""Every unit for ARM (NEON), as LLVM would emit it there: nothing in it is of another processor, or reorders or fuses
what the source does not. It cannot run here; that it gives the same bits follows from the same operations.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any

import llvmlite.binding as llvm
import pytest

from kvist.kernels.cpu import compile as compiler
from kvist.kernels.cpu.build import UNITS, Target, make_module

TRIPLE = "aarch64-unknown-linux-gnu"
FREE = r"\b(?:fast|reassoc|contract|nnan|ninf|nsz|arcp|afn)\b"  # what lets LLVM change a result
SYSTEM = {"clock_gettime", "sched_yield", "memset", "memcpy", "memmove"}

Summary = dict[str, Any]


@pytest.fixture(scope="session")
def machine() -> Any:
    """LLVM's description of an ARM processor that has NEON and no more."""
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    try:
        target = llvm.Target.from_triple(TRIPLE)
    except RuntimeError as error:
        pytest.skip(f"this llvmlite cannot compile for ARM: {error}")
    return target.create_target_machine(cpu="generic", features="+neon", opt=3)


def summary(unit: str, machine: Any) -> Summary:
    module = make_module(unit, machine)
    text = "\n".join(line for line in str(module).splitlines() if not line.startswith(("declare", "source_filename")))
    assembly = machine.emit_assembly(module)
    return {
        "free": re.findall(FREE, re.sub(r'[%@!][\w.$"\\]+|"[^"]*"|;.*', "", text)),
        "foreign": re.findall(r"@llvm\.(?:x86|aarch64|fmuladd)[\w.]*", text),
        "fma": text.count("call <16 x float> @llvm.fma.v16f32("),
        "fmla": len(re.findall(r"\sfml[as]\s+v\d+\.4s,", assembly)),
        "scalar": len(re.findall(r"\sfn?m(?:add|sub)\s", assembly)),
        "calls": sorted({name for name in re.findall(r"\sbl?\s+([a-zA-Z_][\w.$]*)", assembly) if f"\n{name}:" not in assembly}),
    }  # fmt: skip


@pytest.mark.parametrize("unit", list(UNITS))
def test_the_same_operations(unit: str, machine: Any, request: pytest.FixtureRequest) -> None:
    """Compiling takes seconds, so what was found is remembered by pytest until this file or a source changes."""
    memory = getattr(request.config, "cache", None)
    test = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()
    key = f"kvist/neon/{unit}-{compiler._digest(Target('generic', test))}"
    found = memory.get(key, None) if memory else None
    if found is None:
        found = summary(unit, machine)
        if memory:
            memory.set(key, found)
    assert found["free"] == [] and found["foreign"] == [], "no sum may be reordered, nothing fused that was not"
    assert set(found["calls"]) <= SYSTEM, "multiply-adds, rounding and float16 are instructions, not calls"
    assert found["scalar"] == 0
    assert found["fma"] > (15 if unit.startswith(("choosing", "best")) else 50)
    if unit.startswith("weights"):
        assert found["fmla"] == 4 * found["fma"], "sixteen lanes are four instructions; none besides"
    else:
        assert 2 * found["fma"] < found["fmla"] <= 4 * found["fma"], "lanes that nobody reads fall away"


def test_the_search_can_find(machine: Any) -> None:
    """A module with a free sum and a fused one is not taken for a sound one."""
    free = llvm.parse_assembly(
        "define float @f(float %a, float %b) {\n %c = fadd reassoc float %a, %b\n ret float %c\n}"
    )
    assert re.findall(FREE, str(free)) == ["reassoc"]
    fused = llvm.parse_assembly(
        f'target triple = "{TRIPLE}"\ndefine <4 x float> @f(<4 x float> %a, <4 x float> %b, <4 x float> %c) {{\n'
        " %d = fmul contract <4 x float> %a, %b\n %e = fadd contract <4 x float> %d, %c\n ret <4 x float> %e\n}"
    )
    assert re.findall(r"\sfml[as]\s+v\d+\.4s,", machine.emit_assembly(fused))
