"""Tiny random models, written with NumPy alone: the same weights as a Hugging Face folder and as a GGUF file.

Weights come from NumPy's frozen legacy generator, so they are the same everywhere and for ever; fixtures made from them
(scripts/make_parity_fixtures.py) keep a digest.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
from safetensors.numpy import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

import blocks

Tensors = dict[str, npt.NDArray[np.float32]]

TEMPLATE = (
    "{% for message in messages %}<|start|>{{ message['role'] }}\n{{ message['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)


@dataclass(frozen=True)
class Tiny:
    """A tiny model: its sizes, and the rest of its config.json."""

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


ODD = {"hidden": 40, "head_dim": 10, "inner": 56, "vocab": 301}  # nothing is a multiple of 16
LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip

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
    )
}


def config(tiny: Tiny) -> dict[str, Any]:
    """config.json as transformers reads it."""
    common = {
        "vocab_size": tiny.vocab, "bos_token_id": 0, "eos_token_id": 1, "dtype": "float32", "tie_word_embeddings": tiny.tied,
    }  # fmt: skip
    if tiny.family == "gpt2":
        return {
            "architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "n_embd": tiny.hidden, "n_layer": tiny.layers,
            "n_head": tiny.heads, "n_positions": tiny.positions, "n_inner": tiny.inner, "layer_norm_epsilon": 1e-5,
            "activation_function": "gelu_new", **common, **tiny.extra,
        }  # fmt: skip
    return {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": tiny.hidden,
        "num_hidden_layers": tiny.layers, "num_attention_heads": tiny.heads, "num_key_value_heads": tiny.kv_heads,
        "head_dim": tiny.head_dim, "intermediate_size": tiny.inner, "max_position_embeddings": tiny.positions,
        "rms_norm_eps": 1e-5, "hidden_act": "silu", "rope_theta": 10000.0, "rope_scaling": tiny.rope_scaling,
        "attention_bias": tiny.biases, "mlp_bias": tiny.biases, **common, **tiny.extra,
    }  # fmt: skip


def tensors(tiny: Tiny) -> Tensors:
    """All weights under their names in a Hugging Face folder."""
    return _gpt2_tensors(tiny) if tiny.family == "gpt2" else _llama_tensors(tiny)


def _numbers(tiny: Tiny, made: Tensors, name: str, *shape: int, scale: float, mean: float = 0.0) -> None:
    """Normal numbers that depend on the model's and the tensor's name alone."""
    source = np.random.RandomState(zlib.crc32(f"{tiny.name} {name}".encode()))
    made[name] = (mean + scale * source.standard_normal(shape)).astype(np.float32)


def _llama_tensors(tiny: Tiny) -> Tensors:
    made: Tensors = {}
    hidden, inner, q, kv = tiny.hidden, tiny.inner, tiny.heads * tiny.head_dim, tiny.kv_heads * tiny.head_dim

    def linear(name: str, outputs: int, inputs: int) -> None:
        _numbers(tiny, made, f"{name}.weight", outputs, inputs, scale=1.2 / inputs**0.5)
        if tiny.biases:
            _numbers(tiny, made, f"{name}.bias", outputs, scale=0.3)

    _numbers(tiny, made, "model.embed_tokens.weight", tiny.vocab, hidden, scale=0.25 if tiny.tied else 0.7)
    for layer in range(tiny.layers):
        at = f"model.layers.{layer}."
        _numbers(tiny, made, at + "input_layernorm.weight", hidden, scale=0.1, mean=1.0)
        linear(at + "self_attn.q_proj", q, hidden)
        linear(at + "self_attn.k_proj", kv, hidden)
        linear(at + "self_attn.v_proj", kv, hidden)
        linear(at + "self_attn.o_proj", hidden, q)
        _numbers(tiny, made, at + "post_attention_layernorm.weight", hidden, scale=0.1, mean=1.0)
        linear(at + "mlp.gate_proj", inner, hidden)
        linear(at + "mlp.up_proj", inner, hidden)
        linear(at + "mlp.down_proj", hidden, inner)
    _numbers(tiny, made, "model.norm.weight", hidden, scale=0.1, mean=1.0)
    if not tiny.tied:
        _numbers(tiny, made, "lm_head.weight", tiny.vocab, hidden, scale=0.4)
    return made


def _gpt2_tensors(tiny: Tiny) -> Tensors:
    made: Tensors = {}
    hidden = tiny.hidden

    def norm(name: str) -> None:
        _numbers(tiny, made, f"{name}.weight", hidden, scale=0.1, mean=1.0)
        _numbers(tiny, made, f"{name}.bias", hidden, scale=0.1)

    def transposed(name: str, inputs: int, outputs: int) -> None:
        _numbers(tiny, made, f"{name}.weight", inputs, outputs, scale=1.2 / inputs**0.5)
        _numbers(tiny, made, f"{name}.bias", outputs, scale=0.3)

    _numbers(tiny, made, "transformer.wte.weight", tiny.vocab, hidden, scale=0.25)
    _numbers(tiny, made, "transformer.wpe.weight", tiny.positions, hidden, scale=1.0)
    for layer in range(tiny.layers):
        at = f"transformer.h.{layer}."
        norm(at + "ln_1")
        transposed(at + "attn.c_attn", hidden, 3 * hidden)
        transposed(at + "attn.c_proj", hidden, hidden)
        norm(at + "ln_2")
        transposed(at + "mlp.c_fc", hidden, tiny.inner)
        transposed(at + "mlp.c_proj", tiny.inner, hidden)
    norm("transformer.ln_f")
    return made


def digest(tiny: Tiny) -> str:
    """SHA-256 of config and weights: a fixture says what it was made from."""
    made = hashlib.sha256(json.dumps(config(tiny), sort_keys=True).encode())
    for name, array in sorted(tensors(tiny).items()):
        made.update(name.encode() + array.tobytes())
    return made.hexdigest()


# --- a Hugging Face folder
# ----------------------------------------------------------------------------------------------


def tokens(tiny: Tiny) -> tuple[list[str], list[tuple[str, str]]]:
    """A byte-level vocabulary (two special tokens, 256 bytes, then merges) and its merges."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = ["<|start|>", "<|end|>", *letters]
    pairs = [(left, right) for left in "Ġtheaoinsr" for right in "theaoinsr" if left != right]
    merges = pairs[: tiny.vocab - len(vocab)]
    return vocab + [left + right for left, right in merges], merges


def tokenizer(tiny: Tiny) -> Tokenizer:
    """The tokenizer that tokenizer.json holds."""
    vocab, merges = tokens(tiny)
    made = Tokenizer(models.BPE({token: i for i, token in enumerate(vocab)}, merges))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken(token, special=True) for token in vocab[:2]])
    return made


def write_folder(tiny: Tiny, folder: Path, weights: Tensors | None = None, **changes: Any) -> Path:
    """config.json (with `changes`), model.safetensors, tokenizer.json, tokenizer_config.json; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({**config(tiny), **changes}, indent=1))
    save_file(tensors(tiny) if weights is None else weights, folder / "model.safetensors", {"format": "pt"})
    tokenizer(tiny).save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<|start|>", "eos_token": "<|end|>",
        "chat_template": TEMPLATE, "clean_up_tokenization_spaces": False,
    }  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=1))
    return folder


# --- a GGUF file
# --------------------------------------------------------------------------------------------------------

GGUF_NAMES = {
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output", "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "post_attention_layernorm": "ffn_norm", "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down", "transformer.wte": "token_embd",
    "transformer.wpe": "position_embd", "transformer.ln_f": "output_norm", "ln_1": "attn_norm", "attn.c_attn": "attn_qkv",
    "attn.c_proj": "attn_output", "ln_2": "ffn_norm", "mlp.c_fc": "ffn_up", "mlp.c_proj": "ffn_down",
}  # fmt: skip


def gguf_tensors(tiny: Tiny, weights: Tensors | None = None) -> Tensors:
    """The weights as llama.cpp's converter writes them: its names, q and k interleaved, GPT-2's matrices (outputs,
    inputs).
    """
    made: Tensors = {}
    for name, array in (tensors(tiny) if weights is None else weights).items():
        stem, _, kind = name.rpartition(".")
        layer = ""
        for prefix in ("model.layers.", "transformer.h."):
            if stem.startswith(prefix):
                number, _, stem = stem.removeprefix(prefix).partition(".")
                layer = f"blk.{number}."
        for part, heads in (("q_proj", tiny.heads), ("k_proj", tiny.kv_heads)):
            if stem.endswith(part):
                array = array.reshape(heads, 2, tiny.head_dim // 2, -1).swapaxes(1, 2).reshape(array.shape)
        if stem.startswith(("attn.c", "mlp.c")) and array.ndim == 2:
            array = array.T
        made[f"{layer}{GGUF_NAMES[stem]}.{kind}"] = np.ascontiguousarray(array)
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


def write_gguf(
    tiny: Tiny, path: Path, kind: str = "F32", weights: Tensors | None = None, others: Mapping[str, str] | None = None
) -> Path:
    """One GGUF file with matrices of `kind` (F32, F16, BF16 or a block type) and vectors of F32; returns the path.

    others: kinds of some matrices, by the last part of their names (`attn_v`).
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    raw = config(tiny)
    writer = gguf.GGUFWriter(path, tiny.family)
    writer.add_embedding_length(tiny.hidden)
    writer.add_block_count(tiny.layers)
    writer.add_head_count(tiny.heads)
    writer.add_feed_forward_length(tiny.inner)
    writer.add_context_length(tiny.positions)
    if tiny.family == "llama":
        writer.add_head_count_kv(tiny.kv_heads)
        writer.add_key_length(tiny.head_dim)
        writer.add_value_length(tiny.head_dim)
        writer.add_rope_dimension_count(tiny.head_dim)
        writer.add_rope_freq_base(raw["rope_theta"])
        writer.add_layer_norm_rms_eps(raw["rms_norm_eps"])
        if tiny.rope_scaling and tiny.rope_scaling["rope_type"] == "linear":
            writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
            writer.add_rope_scaling_factor(tiny.rope_scaling["factor"])
    else:
        writer.add_layer_norm_eps(raw["layer_norm_epsilon"])
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
        held = gguf.GGMLQuantizationType[own if array.ndim == 2 else "F32"]
        writer.add_tensor(name, blocks.held_as(array, held), raw_dtype=held)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
