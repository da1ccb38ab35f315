"""Families of models as data: where a file says each config field, and what it calls each weight.

A new family is a row here. If it needs arithmetic of its own, that becomes a field of `ModelConfig`, never a test on a
name. Weights are named by role: "embed", "positions", "final_norm", "head", and per layer "attention_norm", "q", "k",
"v", "o", "mlp_norm", "gate", "up", "down", each also with ".bias". "head" may be absent (tied to "embed"), so may
every bias.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Rows = Literal["all", "q", "k", "v"]


@dataclass(frozen=True, slots=True)
class Source:
    """Where a role lies in a file: a tensor's name ("{layer}" is filled in), and what must be done to it.

    rows: the part of a fused q, k, v matrix. transposed: stored as (inputs, outputs). interleaved: rotary pairs are
    neighbours (2i, 2i + 1); rows are reordered to halves (i, i + half).
    """

    name: str
    rows: Rows = "all"
    transposed: bool = False
    interleaved: bool = False


@dataclass(frozen=True, slots=True)
class Family:
    """One row of the table.

    `fields`: config field -> keys of config.json, the first present counts; `fixed`: fields that do not vary.

    `unless`: keys of config.json that change the arithmetic, with the only value kvist runs.
    """

    name: str
    architectures: tuple[str, ...]
    model_types: tuple[str, ...]
    gguf_architecture: str
    fields: Mapping[str, tuple[str, ...]]
    fixed: Mapping[str, object]
    hf: Mapping[str, Source]
    gguf: Mapping[str, Source]
    unless: Mapping[str, object] = field(default_factory=dict)


def _with_biases(sources: Mapping[str, Source]) -> dict[str, Source]:
    """Each "X.weight" also as its "X.bias", to be taken if the file has it."""
    biases = {
        f"{role}.bias": Source(source.name.removesuffix("weight") + "bias", source.rows, False, source.interleaved)
        for role, source in sources.items()
        if source.name.endswith(".weight") and role not in ("embed", "positions", "head")
    }
    return {**sources, **biases}


LLAMA = Family(
    name="llama",
    architectures=("LlamaForCausalLM",),
    model_types=("llama",),
    gguf_architecture="llama",
    fields={
        "hidden_size": ("hidden_size",),
        "num_layers": ("num_hidden_layers",),
        "num_heads": ("num_attention_heads",),
        "num_kv_heads": ("num_key_value_heads",),
        "head_dim": ("head_dim",),
        "intermediate_size": ("intermediate_size",),
        "max_positions": ("max_position_embeddings",),
        "norm_eps": ("rms_norm_eps",),
        "activation": ("hidden_act",),
        "tie_embeddings": ("tie_word_embeddings",),
    },
    fixed={"norm": "rms", "gated": True, "positions": "rotary", "activation": "silu", "tie_embeddings": False},
    hf=_with_biases(
        {
            "embed": Source("model.embed_tokens.weight"),
            "final_norm": Source("model.norm.weight"),
            "head": Source("lm_head.weight"),
            "attention_norm": Source("model.layers.{layer}.input_layernorm.weight"),
            "q": Source("model.layers.{layer}.self_attn.q_proj.weight"),
            "k": Source("model.layers.{layer}.self_attn.k_proj.weight"),
            "v": Source("model.layers.{layer}.self_attn.v_proj.weight"),
            "o": Source("model.layers.{layer}.self_attn.o_proj.weight"),
            "mlp_norm": Source("model.layers.{layer}.post_attention_layernorm.weight"),
            "gate": Source("model.layers.{layer}.mlp.gate_proj.weight"),
            "up": Source("model.layers.{layer}.mlp.up_proj.weight"),
            "down": Source("model.layers.{layer}.mlp.down_proj.weight"),
        }
    ),
    gguf=_with_biases(
        {
            "embed": Source("token_embd.weight"),
            "final_norm": Source("output_norm.weight"),
            "head": Source("output.weight"),
            "attention_norm": Source("blk.{layer}.attn_norm.weight"),
            "q": Source("blk.{layer}.attn_q.weight", interleaved=True),
            "k": Source("blk.{layer}.attn_k.weight", interleaved=True),
            "v": Source("blk.{layer}.attn_v.weight"),
            "o": Source("blk.{layer}.attn_output.weight"),
            "mlp_norm": Source("blk.{layer}.ffn_norm.weight"),
            "gate": Source("blk.{layer}.ffn_gate.weight"),
            "up": Source("blk.{layer}.ffn_up.weight"),
            "down": Source("blk.{layer}.ffn_down.weight"),
        }
    ),
)

GPT2 = Family(
    name="gpt2",
    architectures=("GPT2LMHeadModel",),
    model_types=("gpt2",),
    gguf_architecture="gpt2",
    fields={
        "hidden_size": ("n_embd",),
        "num_layers": ("n_layer",),
        "num_heads": ("n_head",),
        "intermediate_size": ("n_inner",),
        "max_positions": ("n_positions",),
        "norm_eps": ("layer_norm_epsilon",),
        "activation": ("activation_function",),
        "tie_embeddings": ("tie_word_embeddings",),
    },
    fixed={"norm": "layer", "gated": False, "positions": "learned", "activation": "gelu_tanh", "tie_embeddings": True},
    hf=_with_biases(
        {
            "embed": Source("transformer.wte.weight"),
            "positions": Source("transformer.wpe.weight"),
            "final_norm": Source("transformer.ln_f.weight"),
            "head": Source("lm_head.weight"),
            "attention_norm": Source("transformer.h.{layer}.ln_1.weight"),
            "q": Source("transformer.h.{layer}.attn.c_attn.weight", rows="q", transposed=True),
            "k": Source("transformer.h.{layer}.attn.c_attn.weight", rows="k", transposed=True),
            "v": Source("transformer.h.{layer}.attn.c_attn.weight", rows="v", transposed=True),
            "o": Source("transformer.h.{layer}.attn.c_proj.weight", transposed=True),
            "mlp_norm": Source("transformer.h.{layer}.ln_2.weight"),
            "up": Source("transformer.h.{layer}.mlp.c_fc.weight", transposed=True),
            "down": Source("transformer.h.{layer}.mlp.c_proj.weight", transposed=True),
        }
    ),
    gguf=_with_biases(
        {
            "embed": Source("token_embd.weight"),
            "positions": Source("position_embd.weight"),
            "final_norm": Source("output_norm.weight"),
            "head": Source("output.weight"),
            "attention_norm": Source("blk.{layer}.attn_norm.weight"),
            "q": Source("blk.{layer}.attn_qkv.weight", rows="q"),
            "k": Source("blk.{layer}.attn_qkv.weight", rows="k"),
            "v": Source("blk.{layer}.attn_qkv.weight", rows="v"),
            "o": Source("blk.{layer}.attn_output.weight"),
            "mlp_norm": Source("blk.{layer}.ffn_norm.weight"),
            "up": Source("blk.{layer}.ffn_up.weight"),
            "down": Source("blk.{layer}.ffn_down.weight"),
        }
    ),
    unless={"scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False, "add_cross_attention": False},
)

FAMILIES: tuple[Family, ...] = (LLAMA, GPT2)

ACTIVATION_NAMES = {
    "silu": "silu",
    "swish": "silu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu": "gelu",
}
"""What config.json calls an activation -> ours."""
