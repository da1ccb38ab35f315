"""Llama and those that kept its block: RMSNorm, gated MLP, rotary positions, separate q, k and v."""

from __future__ import annotations

from dataclasses import replace

from kvist.models.families.table import (
    FIELDS,
    GGUF,
    GGUF_POST_NORMS,
    GGUF_QUERY_KEY_NORMS,
    LLAMA_LIKE,
    NAMES,
    QUERY_KEY_NORMS,
    Family,
    Source,
    Windows,
    fused,
    with_biases,
    without,
)

LLAMA = Family(
    name="llama",
    architectures=("LlamaForCausalLM",),
    model_types=("llama",),
    gguf_architecture="llama",
    fields=FIELDS,
    fixed=LLAMA_LIKE,
    hf=with_biases(NAMES),
    gguf=with_biases({
        **GGUF,
        "q": Source("blk.{layer}.attn_q.weight", interleaved=True),
        "k": Source("blk.{layer}.attn_k.weight", interleaved=True),
    }),
)  # fmt: skip

MISTRAL = replace(
    LLAMA,
    name="mistral",
    architectures=("MistralForCausalLM",),
    model_types=("mistral",),
    gguf_architecture="",  # its GGUF files are of the architecture "llama"
    windows=Windows(),
)

QWEN2 = replace(
    LLAMA,
    name="qwen2",
    architectures=("Qwen2ForCausalLM",),
    model_types=("qwen2",),
    gguf_architecture="qwen2",
    gguf=with_biases(GGUF),
    windows=Windows(switch="use_sliding_window", first_key="max_window_layers"),
)

QWEN3 = replace(
    QWEN2,
    name="qwen3",
    architectures=("Qwen3ForCausalLM",),
    model_types=("qwen3",),
    gguf_architecture="qwen3",
    fixed={**LLAMA_LIKE, "query_key_norm": "heads", "head_dim": 128},
    hf=with_biases({**NAMES, **QUERY_KEY_NORMS}),
    gguf=with_biases({**GGUF, **GGUF_QUERY_KEY_NORMS}),
)

OLMO2 = replace(
    LLAMA,
    name="olmo2",
    architectures=("Olmo2ForCausalLM",),
    model_types=("olmo2",),
    gguf_architecture="olmo2",
    fixed={**LLAMA_LIKE, "query_key_norm": "row", "pre_norms": False, "post_norms": True},
    hf=with_biases({
        **without(NAMES, "attention_norm", "mlp_norm"), **QUERY_KEY_NORMS,
        "attention_post_norm": Source("model.layers.{layer}.post_attention_layernorm.weight"),
        "mlp_post_norm": Source("model.layers.{layer}.post_feedforward_layernorm.weight"),
    }),
    gguf=with_biases({**without(GGUF, "attention_norm", "mlp_norm"), **GGUF_QUERY_KEY_NORMS, **GGUF_POST_NORMS}),
)  # fmt: skip

PHI3 = replace(
    LLAMA,
    name="phi3",
    architectures=("Phi3ForCausalLM",),
    model_types=("phi3",),
    gguf_architecture="phi3",
    hf=with_biases({
        **NAMES, **fused("model.layers.{layer}.self_attn.qkv_proj.weight"),
        "gate": Source("model.layers.{layer}.mlp.gate_up_proj.weight", "gate"),
        "up": Source("model.layers.{layer}.mlp.gate_up_proj.weight", "up"),
    }),
    gguf=with_biases({
        **GGUF, **fused("blk.{layer}.attn_qkv.weight"),
        "gate": Source("blk.{layer}.ffn_up.weight", "gate"),
        "up": Source("blk.{layer}.ffn_up.weight", "up"),
    }),
    windows=Windows(),
)  # fmt: skip
