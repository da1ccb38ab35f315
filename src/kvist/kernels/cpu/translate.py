"""numba's part of a build: an entry and all that it calls, in LLVM's words.

numba makes machine code of every function as soon as it is compiled, and of all that the function calls once more,
level by level, so that each could be called from Python. Here nothing is called, and `without_code` keeps numba from
it. It takes the place of parts that are numba's own, so it is for a process that does nothing else (`build`); where
numba is another one and this fails, the unit is built without.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

from numba import njit, types
from numba.core import config
from numba.core.codegen import JITCodeLibrary, JITCPUCodegen

from kvist.kernels.cpu.math import OPTIONS, PLACED

ARGUMENTS = 4


def translate(entry: Callable[..., Any]) -> tuple[str, str, dict[str, str]]:
    """A module's text, the name of its entry, which takes four int64, and attributes by names of other functions.

    numba is told to optimise nothing.
    """
    level = config.OPT
    config.OPT = type(level)(0)
    try:
        compiled = njit(types.int64(*[types.int64] * ARGUMENTS), **OPTIONS)(entry)
    finally:
        config.OPT = level
    (result,) = compiled.overloads.values()
    placed = {
        made.fndesc.llvm_func_name: attribute
        for attribute, functions in PLACED.items()
        for function in functions
        for made in function.overloads.values()
    }
    return result.library.get_llvm_str(), result.fndesc.llvm_func_name, placed


@contextmanager
def without_code() -> Iterator[None]:
    """Meanwhile numba translates, and nothing that it compiles can be called."""
    with (
        patch.object(JITCodeLibrary, "finalize", _finalize),
        patch.object(JITCodeLibrary, "get_pointer_to_function", lambda library, name: 0),
        patch.object(JITCodeLibrary, "get_llvm_str", _linked),
        patch.object(JITCPUCodegen, "set_env", lambda codegen, name, env: None),
    ):
        yield


def _finalize(library: Any) -> None:
    library._finalized = True


def _linked(library: Any) -> str:
    """The library's own module with those of all libraries that it refers to."""
    seen, others = {library}, list(library._linking_libraries)
    while others:
        other = others.pop()
        if other not in seen:
            seen.add(other)
            library._final_module.link_in(other._final_module, preserve=True)
            others += other._linking_libraries
    return str(library._final_module)
