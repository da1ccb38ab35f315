"""Tiny random models of every family as data: their config.json and their weights, by the names of transformers.

Weights come from NumPy's frozen legacy generator, so they are the same everywhere and for ever; fixtures made from them
(scripts/make_parity_fixtures.py) keep a digest.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import tiny_weights
from tiny_weights import Tensors


@dataclass(frozen=True)
class Tiny:
    """A tiny model: its sizes, and the rest of its config.json.

    by_length: its rotary angles depend on the longest sequence, so nobody can go on where a shorter one ended.
    """

    name: str
    family: str
    hidden: int = 64
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 16
    inner: int = 96
    vocab: int = 300
    layers: int = 3
    positions: int = 256
    tied: bool = False
    biases: bool = False
    rope_scaling: Mapping[str, Any] | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)
    by_length: bool = False


ODD = {"hidden": 40, "head_dim": 10, "inner": 56, "vocab": 301}  # nothing is a multiple of 16
LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "beta_fast": 8.0}
LONGROPE = {
    "rope_type": "longrope", "short_factor": [1.0, 1.1, 1.2, 1.3, 1.5, 1.8, 2.0, 2.5],
    "long_factor": [1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0],
}  # fmt: skip
GEMMA = {"hidden_activation": "gelu_pytorch_tanh", "query_pre_attn_scalar": 24}
MIXED = {"kv_heads": 4, "biases": True}

MODELS: dict[str, Tiny] = {
    tiny.name: tiny
    for tiny in (
        Tiny("llama", "llama"),
        Tiny("llama-tied", "llama", tied=True),
        Tiny("llama-biases", "llama", biases=True),
        Tiny("llama-linear", "llama", rope_scaling={"rope_type": "linear", "factor": 4.0}),
        Tiny("llama-llama3", "llama", rope_scaling=LLAMA3, extra={"rope_theta": 500000.0}),
        Tiny("llama-odd", "llama", **ODD, biases=True),
        Tiny("gpt2", "gpt2", kv_heads=4, tied=True, biases=True),
        Tiny("gpt2-odd", "gpt2", kv_heads=4, tied=True, biases=True, **ODD),
        Tiny("gpt2-gelu", "gpt2", kv_heads=4, tied=True, biases=True, extra={"activation_function": "gelu"}),
        Tiny("llama-yarn", "llama", rope_scaling=YARN),
        Tiny("llama-dynamic", "llama", rope_scaling={"rope_type": "dynamic", "factor": 4.0}, positions=64, by_length=True),
        Tiny("mistral", "mistral", extra={"sliding_window": 24}),
        Tiny("qwen2", "qwen2", tied=True),
        Tiny("qwen2-windows", "qwen2", extra={"use_sliding_window": True, "sliding_window": 20, "max_window_layers": 1}),
        Tiny("qwen3", "qwen3", head_dim=32, extra={"rope_theta": 1000000.0}),
        Tiny("qwen3-odd", "qwen3", **ODD),
        Tiny("phi3", "phi3", extra={"sliding_window": 100, "partial_rotary_factor": 0.5}),
        Tiny("phi3-longrope", "phi3", rope_scaling=LONGROPE, extra={"original_max_position_embeddings": 24}, by_length=True),
        Tiny("olmo2", "olmo2"),
        Tiny("olmo2-odd", "olmo2", **ODD),
        Tiny("gemma", "gemma", kv_heads=1, head_dim=32, tied=True),
        Tiny("gemma2", "gemma2", head_dim=32, layers=4, extra={
            **GEMMA, "sliding_window": 24, "attn_logit_softcapping": 5.0, "final_logit_softcapping": 10.0,
        }),
        Tiny("gemma3", "gemma3", head_dim=32, layers=4, extra={
            **GEMMA, "query_pre_attn_scalar": 32, "sliding_window": 24, "sliding_window_pattern": 3, "rope_local_base_freq": 10000.0,
        }, rope_scaling={"rope_type": "linear", "factor": 8.0}),
        Tiny("gpt_bigcode", "gpt_bigcode", kv_heads=1, tied=True, biases=True),
        Tiny("starcoder2", "starcoder2", tied=True, biases=True, extra={"sliding_window": 40}),
        Tiny("gpt_neox", "gpt_neox", **MIXED, extra={"rotary_pct": 0.25}),
        Tiny("gpt_neox-serial", "gpt_neox", **MIXED, extra={"rotary_pct": 1.0, "use_parallel_residual": False}),
        Tiny("stablelm", "stablelm", extra={"use_qkv_bias": True, "partial_rotary_factor": 0.5}),
        Tiny("stablelm-parallel", "stablelm", extra={"use_parallel_residual": True}),
        Tiny("mixtral", "mixtral", inner=48),
        Tiny("qwen3_moe", "qwen3_moe", head_dim=32, inner=32, extra={"num_experts": 12, "num_experts_per_tok": 3}),
        Tiny("gpt_oss", "gpt_oss", inner=48, layers=4, biases=True, extra={"sliding_window": 24, "swiglu_limit": 1.0},
             rope_scaling={"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "truncate": False,
                           "beta_fast": 8.0, "beta_slow": 1.0}),
        Tiny("falcon", "falcon", kv_heads=1, tied=True),
        Tiny("falcon-grouped", "falcon", tied=True, extra={"new_decoder_architecture": True, "num_kv_heads": 2}),
    )
}  # fmt: skip


def _llama(tiny: Tiny) -> dict[str, Any]:
    return {
        "hidden_size": tiny.hidden, "num_hidden_layers": tiny.layers, "num_attention_heads": tiny.heads,
        "num_key_value_heads": tiny.kv_heads, "head_dim": tiny.head_dim, "intermediate_size": tiny.inner,
        "max_position_embeddings": tiny.positions, "rms_norm_eps": 1e-5, "hidden_act": "silu", "rope_theta": 10000.0,
        "rope_scaling": tiny.rope_scaling, "attention_bias": tiny.biases, "mlp_bias": tiny.biases,
    }  # fmt: skip


def _like_llama(tiny: Tiny, *left_out: str, **changes: Any) -> dict[str, Any]:
    return {key: value for key, value in _llama(tiny).items() if key not in (*left_out, "mlp_bias")} | changes


def _gpt2(tiny: Tiny) -> dict[str, Any]:
    return {
        "n_embd": tiny.hidden, "n_layer": tiny.layers, "n_head": tiny.heads, "n_positions": tiny.positions,
        "n_inner": tiny.inner, "layer_norm_epsilon": 1e-5, "activation_function": "gelu_new",
    }  # fmt: skip


def _gpt_bigcode(tiny: Tiny) -> dict[str, Any]:
    return {**_gpt2(tiny), "activation_function": "gelu_pytorch_tanh", "multi_query": True}


def _starcoder2(tiny: Tiny) -> dict[str, Any]:
    changed = {"norm_epsilon": 1e-5, "hidden_act": "gelu_pytorch_tanh", "use_bias": True}
    return _like_llama(tiny, "head_dim", "rms_norm_eps", "attention_bias", **changed)


def _gpt_neox(tiny: Tiny) -> dict[str, Any]:
    changed = {"layer_norm_eps": 1e-5, "hidden_act": "gelu"}
    return _like_llama(tiny, "head_dim", "rms_norm_eps", "num_key_value_heads", **changed)


def _stablelm(tiny: Tiny) -> dict[str, Any]:
    return _like_llama(tiny, "head_dim", "rms_norm_eps", "attention_bias", layer_norm_eps=1e-5)


def _falcon(tiny: Tiny) -> dict[str, Any]:
    return {
        "hidden_size": tiny.hidden, "num_hidden_layers": tiny.layers, "num_attention_heads": tiny.heads,
        "ffn_hidden_size": tiny.inner, "max_position_embeddings": tiny.positions, "layer_norm_epsilon": 1e-5,
        "activation": "gelu", "rope_theta": 10000.0, "alibi": False, "multi_query": True, "parallel_attn": True,
        "bias": False, "new_decoder_architecture": False,
    }  # fmt: skip


def _qwen3_moe(tiny: Tiny) -> dict[str, Any]:
    return _like_llama(tiny, intermediate_size=200, moe_intermediate_size=tiny.inner, norm_topk_prob=False)


CONFIGS: dict[str, tuple[str, str, Callable[[Tiny], dict[str, Any]]]] = {
    "llama": ("LlamaForCausalLM", "llama", _llama),
    "gpt2": ("GPT2LMHeadModel", "gpt2", _gpt2),
    "mistral": ("MistralForCausalLM", "mistral", _like_llama),
    "qwen2": ("Qwen2ForCausalLM", "qwen2", lambda tiny: _like_llama(tiny, "head_dim", "attention_bias")),
    "qwen3": ("Qwen3ForCausalLM", "qwen3", _like_llama),
    "phi3": ("Phi3ForCausalLM", "phi3", lambda tiny: _like_llama(tiny, "head_dim", pad_token_id=0)),
    "olmo2": ("Olmo2ForCausalLM", "olmo2", lambda tiny: _like_llama(tiny, "head_dim", pad_token_id=0)),
    "gemma": ("GemmaForCausalLM", "gemma", lambda tiny: _like_llama(tiny, hidden_act="gelu_pytorch_tanh")),
    "gemma2": ("Gemma2ForCausalLM", "gemma2", lambda tiny: _like_llama(tiny, "hidden_act")),
    "gemma3": ("Gemma3ForCausalLM", "gemma3_text", lambda tiny: _like_llama(tiny, "hidden_act", rope_theta=1000000.0)),
    "gpt_bigcode": ("GPTBigCodeForCausalLM", "gpt_bigcode", _gpt_bigcode),
    "starcoder2": ("Starcoder2ForCausalLM", "starcoder2", _starcoder2),
    "gpt_neox": ("GPTNeoXForCausalLM", "gpt_neox", _gpt_neox),
    "stablelm": ("StableLmForCausalLM", "stablelm", _stablelm),
    "falcon": ("FalconForCausalLM", "falcon", _falcon),
    "mixtral": (
        "MixtralForCausalLM",
        "mixtral",
        lambda tiny: _like_llama(tiny, num_local_experts=4, num_experts_per_tok=2),
    ),
    "qwen3_moe": ("Qwen3MoeForCausalLM", "qwen3_moe", _qwen3_moe),
    "gpt_oss": (
        "GptOssForCausalLM",
        "gpt_oss",
        lambda tiny: _like_llama(tiny, num_local_experts=6, num_experts_per_tok=2),
    ),
}


def config(tiny: Tiny) -> dict[str, Any]:
    """config.json as transformers reads it."""
    architecture, model_type, own = CONFIGS[tiny.family]
    return {
        "architectures": [architecture], "model_type": model_type, **own(tiny), "vocab_size": tiny.vocab,
        "bos_token_id": 0, "eos_token_id": 1, "dtype": "float32", "tie_word_embeddings": tiny.tied, **tiny.extra,
    }  # fmt: skip


def tensors(tiny: Tiny) -> Tensors:
    """All weights under their names in a Hugging Face folder."""
    return tiny_weights.tensors(tiny)


def digest(tiny: Tiny) -> str:
    """SHA-256 of config and weights: a fixture says what it was made from."""
    made = hashlib.sha256(json.dumps(config(tiny), sort_keys=True).encode())
    for name, array in sorted(tensors(tiny).items()):
        made.update(name.encode() + array.tobytes())
    return made.hexdigest()
