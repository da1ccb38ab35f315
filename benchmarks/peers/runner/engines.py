"""Who is measured: a script, an environment, weights and options each. One entry a column of the table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class EngineSpec:
    """One engine as it is measured.

    script: its adapter. environment: whose Python runs it; "kvist" is the Python that runs this program. weights: a
    name of `weights.KINDS`. baseline: the engine its ratios are taken against. cases: the cases it runs; empty: all.
    optional: only measured when `--only` names it. slow_start: keeps its process for all rounds. preload: a shared
    library of its environment that is loaded before all others.
    """

    name: str
    title: str
    script: str
    environment: str
    weights: str
    baseline: str = "kvist"
    options: Mapping[str, Any] = field(default_factory=dict)
    cases: tuple[str, ...] = ()
    optional: bool = False
    slow_start: bool = False
    preload: str = ""


LONG = ("context_8000",)
OPENVINO_BATCH = 512  # tokens of a step: as kvist and llama.cpp; its own default of 256 is not faster

ENGINES = (
    EngineSpec("kvist", "kvist", "peer_kvist.py", "kvist", "gguf", options={"weights": "f16"}),
    EngineSpec(
        "openvino", "OpenVINO GenAI", "peer_openvino.py", "openvino", "openvino",
        options={"cache": "f16", "batched_tokens": OPENVINO_BATCH},
    ),
    EngineSpec(
        "openvino-u8", "OpenVINO, u8 cache", "peer_openvino.py", "openvino", "openvino",
        options={"cache": "u8", "batched_tokens": OPENVINO_BATCH}, cases=LONG,
    ),
    EngineSpec(
        "llamacpp-bf16", "llama.cpp", "peer_llamacpp.py", "llamacpp", "bf16", options={"flash_attention": "auto"}
    ),
    EngineSpec(
        "llamacpp-bf16-noflash", "llama.cpp, no flash", "peer_llamacpp.py", "llamacpp", "bf16",
        options={"flash_attention": "off"}, cases=LONG,
    ),
    EngineSpec(
        "vllm", "vLLM CPU", "peer_vllm.py", "vllm", "hf", slow_start=True, preload="lib/libiomp5.so"
    ),  # its documentation asks for Intel's OpenMP
    EngineSpec("transformers", "transformers", "peer_transformers.py", "transformers", "hf"),
    EngineSpec(
        "kvist-q4_1", "kvist, Q4_1", "peer_kvist.py", "kvist", "gguf", "kvist-q4_1", options={"weights": "packed"}
    ),
    EngineSpec(
        "llamacpp-q4_1", "llama.cpp, Q4_1", "peer_llamacpp.py", "llamacpp", "gguf", "kvist-q4_1",
        options={"flash_attention": "auto"},
    ),
    EngineSpec(
        "llamacpp-q8_0", "llama.cpp, Q8_0", "peer_llamacpp.py", "llamacpp", "q8_0", "kvist-q4_1",
        options={"flash_attention": "auto"}, optional=True,
    ),
)  # fmt: skip


def chosen(names: str | None) -> list[EngineSpec]:
    """The engines that a comma-separated list names, in the table's order; all that are not optional without one."""
    if names is None:
        return [spec for spec in ENGINES if not spec.optional]
    wanted = names.split(",")
    known = {spec.name for spec in ENGINES}
    for name in wanted:
        if name not in known:
            raise ValueError(f"no engine is called {name}; there are {', '.join(sorted(known))}")
    return [spec for spec in ENGINES if spec.name in wanted]
