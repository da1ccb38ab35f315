"""Write a GGUF file again with another type of weights: `convert_llamacpp.py BF16|Q8_0 SOURCE TARGET`."""

from __future__ import annotations

import ctypes
import sys

import llama_cpp

TYPES = {"BF16": llama_cpp.LLAMA_FTYPE_MOSTLY_BF16, "Q8_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0}


def main(name: str, source: str, target: str) -> None:
    """Quantised weights are taken as what they stand for and rounded to the new type."""
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = TYPES[name]
    params.allow_requantize = True
    params.nthread = 2
    if llama_cpp.llama_model_quantize(source.encode(), target.encode(), ctypes.byref(params)) != 0:
        sys.exit(f"llama.cpp could not write {target}")


if __name__ == "__main__":
    main(*sys.argv[1:])
