"""Mixtures of experts: a router and many small MLPs in place of one."""

from __future__ import annotations

from dataclasses import replace

from kvist.models.families.llama import LLAMA, QWEN3
from kvist.models.families.table import (
    FIELDS,
    GGUF,
    GGUF_QUERY_KEY_NORMS,
    LLAMA_LIKE,
    NAMES,
    QUERY_KEY_NORMS,
    Family,
    Source,
    Windows,
    experts,
    with_biases,
    without,
)

_AROUND = without(NAMES, "gate", "up", "down")
_GGUF_EXPERTS = experts(
    "blk.{layer}.ffn_gate_inp.weight",
    *(Source(f"blk.{{layer}}.ffn_{name}_exps.weight", stacked=True) for name in ("gate", "up", "down")),
)

MIXTRAL = Family(
    name="mixtral",
    architectures=("MixtralForCausalLM",),
    model_types=("mixtral",),
    gguf_architecture="llama",
    fields={**FIELDS, "experts": ("num_local_experts",), "experts_chosen": ("num_experts_per_tok",)},
    fixed={**LLAMA_LIKE, "renormalise_experts": True},
    hf=with_biases({
        **_AROUND,
        **experts(
            "model.layers.{layer}.block_sparse_moe.gate.weight",
            *(
                Source(f"model.layers.{{layer}}.block_sparse_moe.experts.{{expert}}.{name}.weight")
                for name in ("w1", "w3", "w2")
            ),
        ),
    }),
    gguf={**without(LLAMA.gguf, "gate", "up", "down", "gate.bias", "up.bias", "down.bias"), **_GGUF_EXPERTS},
    windows=Windows(),
)  # fmt: skip

QWEN3_MOE = replace(
    QWEN3,
    name="qwen3_moe",
    architectures=("Qwen3MoeForCausalLM",),
    model_types=("qwen3_moe",),
    gguf_architecture="qwen3moe",
    fields={
        **FIELDS,
        "intermediate_size": ("moe_intermediate_size",),
        "experts": ("num_experts",),
        "experts_chosen": ("num_experts_per_tok",),
        "renormalise_experts": ("norm_topk_prob",),
    },
    hf=with_biases({
        **_AROUND, **QUERY_KEY_NORMS,
        **experts(
            "model.layers.{layer}.mlp.gate.weight",
            *(
                Source(f"model.layers.{{layer}}.mlp.experts.{{expert}}.{name}_proj.weight")
                for name in ("gate", "up", "down")
            ),
        ),
    }),
    gguf=with_biases({**without(GGUF, "gate", "up", "down"), **GGUF_QUERY_KEY_NORMS, **_GGUF_EXPERTS}),
    unless={"decoder_sparse_step": 1, "mlp_only_layers": []},
    windows=Windows(switch="use_sliding_window"),
)  # fmt: skip

_OSS = "model.layers.{layer}.mlp.experts."
_GATE = Source(_OSS + "gate_up_proj", "gate", transposed=True, stacked=True, alternating=True)
_DOWN = Source(_OSS + "down_proj", transposed=True, stacked=True)

GPT_OSS = Family(
    name="gpt_oss",
    architectures=("GptOssForCausalLM",),
    model_types=("gpt_oss",),
    gguf_architecture="",  # its files are of the type MXFP4
    fields={
        **FIELDS,
        "experts": ("num_local_experts",),
        "experts_chosen": ("num_experts_per_tok", "experts_per_token"),
        "expert_clamp": ("swiglu_limit",),
    },
    fixed={
        **LLAMA_LIKE, "renormalise_experts": True, "expert_clamp": 7.0, "sinks": True, "head_dim": 64,
        "rope_theta": 150000.0,
    },
    hf={
        **with_biases({**_AROUND, "router": Source("model.layers.{layer}.mlp.router.weight")}),
        "sinks": Source("model.layers.{layer}.self_attn.sinks"),
        "expert.{expert}.gate": _GATE,
        "expert.{expert}.up": replace(_GATE, rows="up"),
        "expert.{expert}.down": _DOWN,
        "expert.{expert}.gate.bias": replace(_GATE, name=_GATE.name + "_bias", transposed=False),
        "expert.{expert}.up.bias": replace(_GATE, name=_GATE.name + "_bias", transposed=False, rows="up"),
        "expert.{expert}.down.bias": replace(_DOWN, name=_DOWN.name + "_bias", transposed=False),
    },
    gguf={},
    unless={"swiglu_alpha": 1.702},
    windows=Windows(every=2),
)  # fmt: skip
