"""A tiny model as a GGUF file: what llama.cpp's converter makes of a folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt

import blocks
from tiny_models import Tiny, config, tensors
from tiny_tokens import TEMPLATE, tokens
from tiny_weights import Tensors

NO_GGUF = {
    "gpt2-gelu": "the format has no word for an activation: GPT-2 means the tanh form there",
    "llama-dynamic": "the format has no word for this scaling",
    "mistral": "Mistral's files are of the architecture llama, which has no windows",
    "qwen2-windows": "the architecture qwen2 has no windows",
    "gemma2": "the format has no word for the scale of the scores",
    "falcon-grouped": "kvist does not run it from a GGUF file",
    "gpt_neox-serial": "one GPT-NeoX will do",
    "qwen3_moe": "the format means shares among the chosen",
    "gpt_oss": "its files are of the type MXFP4",
}
"""Tiny models that are no GGUF files, and why."""

ARCHITECTURES = {
    "mistral": "llama", "mixtral": "llama", "qwen3_moe": "qwen3moe", "gpt_bigcode": "starcoder", "gpt_neox": "gptneox",
}  # fmt: skip
EXPERTS = {
    "w1": "gate", "w3": "up", "w2": "down", "gate_proj": "gate", "up_proj": "up", "down_proj": "down",
}  # fmt: skip
LAYER_NORM = ("gpt2", "gpt_bigcode", "gpt_neox", "falcon", "stablelm", "starcoder2")
SANDWICH = ("gemma2", "gemma3", "olmo2")

GGUF_NAMES = {
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output", "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "post_attention_layernorm": "ffn_norm", "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down", "transformer.wte": "token_embd",
    "transformer.wpe": "position_embd", "transformer.ln_f": "output_norm", "ln_1": "attn_norm", "attn.c_attn": "attn_qkv",
    "attn.c_proj": "attn_output", "ln_2": "ffn_norm", "mlp.c_fc": "ffn_up", "mlp.c_proj": "ffn_down",
    "self_attn.qkv_proj": "attn_qkv", "block_sparse_moe.gate": "ffn_gate_inp",
    "mlp.gate": "ffn_gate_inp", "mlp.gate_up_proj": "ffn_up", "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm", "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm", "gpt_neox.embed_in": "token_embd", "embed_out": "output",
    "gpt_neox.final_layer_norm": "output_norm", "attention.query_key_value": "attn_qkv", "attention.dense": "attn_output",
    "mlp.dense_h_to_4h": "ffn_up", "mlp.dense_4h_to_h": "ffn_down", "transformer.word_embeddings": "token_embd",
    "self_attention.query_key_value": "attn_qkv", "self_attention.dense": "attn_output",
}  # fmt: skip


def gguf_tensors(tiny: Tiny, weights: Tensors | None = None) -> Tensors:
    """The weights as llama.cpp's converter writes them: its names, Llama's q and k interleaved, GPT-2's matrices
    (outputs, inputs), a fused matrix as all q, all k, all v, and Gemma's norms with the 1 added.
    """
    made: Tensors = {}
    stacks: dict[str, list[npt.NDArray[np.float32]]] = {}
    for name, array in (tensors(tiny) if weights is None else weights).items():
        stem, _, kind = name.rpartition(".")
        layer = ""
        for prefix in ("model.layers.", "transformer.h.", "gpt_neox.layers."):
            if stem.startswith(prefix):
                number, _, stem = stem.removeprefix(prefix).partition(".")
                layer = f"blk.{number}."
        if ".experts." in stem:  # they come in order
            stacks.setdefault(f"{layer}ffn_{EXPERTS[stem.rpartition('.')[2]]}_exps.weight", []).append(array)
            continue
        for part, heads in (("q_proj", tiny.heads), ("k_proj", tiny.kv_heads)):
            if stem.endswith(part) and ARCHITECTURES.get(tiny.family, tiny.family) == "llama":
                array = array.reshape(heads, 2, tiny.head_dim // 2, -1).swapaxes(1, 2).reshape(array.shape)
        if stem.startswith(("attn.c", "mlp.c")) and array.ndim == 2 and tiny.family == "gpt2":
            array = array.T
        if stem.endswith("query_key_value"):
            parts = array.reshape(tiny.kv_heads, -1, tiny.head_dim, *array.shape[1:])
            queries, keys, values = (parts[:, at].reshape(-1, *array.shape[1:]) for at in (slice(-2), -2, -1))
            array = np.concatenate([queries, keys, values])
        if tiny.family.startswith("gemma") and stem.endswith("norm"):
            array = array + np.float32(1)
        name = (
            "post_attention_norm"
            if stem == "post_attention_layernorm" and tiny.family in SANDWICH
            else GGUF_NAMES[stem]
        )
        made[f"{layer}{name}.{kind}"] = np.ascontiguousarray(array)
    made |= {name: np.stack(arrays) for name, arrays in stacks.items()}
    for name in ("short", "long"):
        if tiny.rope_scaling and f"{name}_factor" in tiny.rope_scaling:
            made[f"rope_factors_{name}.weight"] = np.array(tiny.rope_scaling[f"{name}_factor"], np.float32)
    if tiny.rope_scaling and tiny.rope_scaling["rope_type"] == "llama3":
        made["rope_freqs.weight"] = _llama3_divisors(tiny)
    return made


def _llama3_divisors(tiny: Tiny) -> npt.NDArray[np.float32]:
    """What llama.cpp's converter makes of llama3 scaling: a divisor for each pair, 1 / factor blended by wavelength."""
    rope, theta = tiny.rope_scaling or {}, config(tiny)["rope_theta"]
    low, high, factor = rope["low_freq_factor"], rope["high_freq_factor"], rope["factor"]
    original, divisors = rope["original_max_position_embeddings"], []
    for pair in range(0, tiny.head_dim, 2):
        wavelength = 2 * np.pi * theta ** (pair / tiny.head_dim)
        smooth = min(1.0, max(0.0, (original / wavelength - low) / (high - low)))
        divisors.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(divisors, np.float32)


def _add_rotary(writer: gguf.GGUFWriter, tiny: Tiny, raw: Mapping[str, object]) -> None:
    shares = {"gpt_neox": 0.25, "stablelm": 0.25}
    share = raw.get("rotary_pct", raw.get("partial_rotary_factor", shares.get(tiny.family, 1.0)))
    writer.add_key_length(tiny.head_dim)
    writer.add_value_length(tiny.head_dim)
    writer.add_rope_dimension_count(int(tiny.head_dim * share))
    writer.add_rope_freq_base(raw["rope_theta"])
    scaling = tiny.rope_scaling or {}
    if scaling.get("rope_type") in ("linear", "yarn"):
        writer.add_rope_scaling_type(gguf.RopeScalingType(scaling["rope_type"]))
        writer.add_rope_scaling_factor(scaling["factor"])
    if scaling.get("rope_type") == "yarn":
        writer.add_rope_scaling_orig_ctx_len(scaling["original_max_position_embeddings"])
        writer.add_rope_scaling_yarn_beta_fast(scaling["beta_fast"])
    if scaling.get("rope_type") == "longrope":
        original = raw["original_max_position_embeddings"]
        writer.add_rope_scaling_orig_ctx_len(original)
        writer.add_rope_scaling_attn_factors(float(np.sqrt(1 + np.log(tiny.positions / original) / np.log(original))))


def _add_own(writer: gguf.GGUFWriter, raw: Mapping[str, object]) -> None:
    """What some architectures alone have."""
    keys = {
        "sliding_window": writer.add_sliding_window, "attn_logit_softcapping": writer.add_attn_logit_softcapping,
        "final_logit_softcapping": writer.add_final_logit_softcapping,
        "use_parallel_residual": writer.add_parallel_residual,
    }  # fmt: skip
    for key, add in keys.items():
        if key in raw:
            add(raw[key])
    if "sliding_window_pattern" in raw:
        writer.add_uint32(f"{writer.arch}.attention.sliding_window_pattern", raw["sliding_window_pattern"])


def write_gguf(
    tiny: Tiny, path: Path, kind: str = "F32", weights: Tensors | None = None, others: Mapping[str, str] | None = None
) -> Path:
    """One GGUF file with matrices of `kind` (F32, F16, BF16 or a block type) and vectors of F32; returns the path.

    others: kinds of some matrices, by the last part of their names (`attn_v`).
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    raw = config(tiny)
    writer = gguf.GGUFWriter(path, ARCHITECTURES.get(tiny.family, tiny.family))
    writer.add_embedding_length(tiny.hidden)
    writer.add_block_count(tiny.layers)
    writer.add_head_count(tiny.heads)
    writer.add_feed_forward_length(tiny.inner)
    writer.add_context_length(tiny.positions)
    if tiny.family != "gpt2":
        writer.add_head_count_kv(tiny.kv_heads)
    if tiny.family in LAYER_NORM:
        writer.add_layer_norm_eps(1e-5)
    else:
        writer.add_layer_norm_rms_eps(raw["rms_norm_eps"])
    if tiny.family not in ("gpt2", "gpt_bigcode"):
        _add_rotary(writer, tiny, raw)
    if tiny.family in ("mixtral", "qwen3_moe"):
        writer.add_expert_count(raw.get("num_local_experts", raw.get("num_experts")))
        writer.add_expert_used_count(raw["num_experts_per_tok"])
        writer.add_expert_feed_forward_length(tiny.inner)
    _add_own(writer, raw)
    vocab, merges = tokens(tiny)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(vocab)
    writer.add_token_types([3, 3] + [1] * (len(vocab) - 2))
    writer.add_token_merges([f"{left} {right}" for left, right in merges])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_chat_template(TEMPLATE)
    for name, array in gguf_tensors(tiny, weights).items():
        own = (others or {}).get(name.split(".")[-2], kind)
        held = gguf.GGMLQuantizationType[own if array.ndim > 1 and "gate_inp" not in name else "F32"]
        writer.add_tensor(name, blocks.held_as(array, held), raw_dtype=held)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
