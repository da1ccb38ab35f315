"""Random weights of the tiny models, under the names that transformers gives them."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

Tensors = dict[str, npt.NDArray[np.float32]]


@dataclass
class Maker:
    """Normal numbers that depend on the model's and the tensor's name alone."""

    tiny: Any
    made: Tensors = field(default_factory=dict)

    def numbers(self, name: str, *shape: int, scale: float, mean: float = 0.0) -> None:
        source = np.random.RandomState(zlib.crc32(f"{self.tiny.name} {name}".encode()))
        self.made[name] = (mean + scale * source.standard_normal(shape)).astype(np.float32)

    def linear(self, name: str, outputs: int, inputs: int, bias: bool) -> None:
        self.numbers(f"{name}.weight", outputs, inputs, scale=1.2 / inputs**0.5)
        if bias:
            self.numbers(f"{name}.bias", outputs, scale=0.3)

    def transposed(self, name: str, inputs: int, outputs: int) -> None:
        self.numbers(f"{name}.weight", inputs, outputs, scale=1.2 / inputs**0.5)
        self.numbers(f"{name}.bias", outputs, scale=0.3)

    def norm(self, name: str, size: int, bias: bool = False, mean: float = 1.0) -> None:
        self.numbers(f"{name}.weight", size, scale=0.1, mean=mean)
        if bias:
            self.numbers(f"{name}.bias", size, scale=0.1)

    def embeddings(self, embed: str, head: str) -> None:
        tiny = self.tiny
        tied = {"gemma": 0.03, "falcon": 0.12, "starcoder2": 0.1}.get(tiny.family, 0.25)
        scale = tied if tiny.tied else 0.08 if tiny.family.startswith("gemma") else 0.7
        self.numbers(embed, tiny.vocab, tiny.hidden, scale=scale)
        if not tiny.tied:
            self.numbers(head, tiny.vocab, tiny.hidden, scale=0.4)


def tensors(tiny: Any) -> Tensors:
    """All weights of a tiny model."""
    maker = Maker(tiny)
    match tiny.family:
        case "gpt2" | "gpt_bigcode":
            _gpt2(maker)
        case "gpt_neox":
            _gpt_neox(maker)
        case "falcon":
            _falcon(maker)
        case _:
            _llama_like(maker)
    return maker.made


def _llama_like(maker: Maker) -> None:
    """Llama and those with its names; what differs is told by the family."""
    tiny = maker.tiny
    family, hidden, inner, biases = tiny.family, tiny.hidden, tiny.inner, tiny.biases
    q, kv = tiny.heads * tiny.head_dim, tiny.kv_heads * tiny.head_dim
    layer_norm, mean = family in ("stablelm", "starcoder2"), 0.0 if family.startswith("gemma") else 1.0
    qkv_bias = biases or family == "qwen2" or bool(tiny.extra.get("use_qkv_bias"))
    alone = family in ("qwen3", "qwen3_moe", "gemma3")
    head_norms = (tiny.head_dim,) * 2 if alone else (q, kv) if family == "olmo2" else ()
    maker.embeddings("model.embed_tokens.weight", "lm_head.weight")
    for layer in range(tiny.layers):
        at = f"model.layers.{layer}."
        norms = {
            "olmo2": ("post_attention_layernorm", "post_feedforward_layernorm"),
            **dict.fromkeys(("gemma2", "gemma3"), ("input_layernorm", "post_attention_layernorm",
                                                   "pre_feedforward_layernorm", "post_feedforward_layernorm")),
        }.get(family, ("input_layernorm", "post_attention_layernorm"))  # fmt: skip
        for name in norms[: 1 if tiny.extra.get("use_parallel_residual") else None]:
            maker.norm(at + name, hidden, layer_norm, mean)
        if family == "phi3":
            maker.linear(at + "self_attn.qkv_proj", q + 2 * kv, hidden, False)
        else:
            maker.linear(at + "self_attn.q_proj", q, hidden, qkv_bias)
            maker.linear(at + "self_attn.k_proj", kv, hidden, qkv_bias)
            maker.linear(at + "self_attn.v_proj", kv, hidden, qkv_bias)
        for name, size in zip("qk", head_norms, strict=False):
            maker.norm(f"{at}self_attn.{name}_norm", size, False, mean)
        maker.linear(at + "self_attn.o_proj", hidden, q, biases)
        if family in ("mixtral", "qwen3_moe", "gpt_oss"):
            _mixture(maker, at)
            continue
        if family == "phi3":
            maker.linear(at + "mlp.gate_up_proj", 2 * inner, hidden, False)
        elif family == "starcoder2":
            maker.linear(at + "mlp.c_fc", inner, hidden, biases)
        else:
            maker.linear(at + "mlp.gate_proj", inner, hidden, biases)
            maker.linear(at + "mlp.up_proj", inner, hidden, biases)
        maker.linear(at + ("mlp.c_proj" if family == "starcoder2" else "mlp.down_proj"), hidden, inner, biases)
    maker.norm("model.norm", hidden, layer_norm, mean)


def _mixture(maker: Maker, at: str) -> None:
    """A router and experts: one tensor for each (Mixtral, Qwen3), or all in one (gpt-oss)."""
    tiny, hidden, inner = maker.tiny, maker.tiny.hidden, maker.tiny.inner
    if tiny.family == "gpt_oss":
        count = tiny.extra.get("num_local_experts", 6)
        maker.linear(at + "mlp.router", count, hidden, True)
        maker.numbers(at + "self_attn.sinks", tiny.heads, scale=1.0)
        maker.numbers(at + "mlp.experts.gate_up_proj", count, hidden, 2 * inner, scale=1.2 / hidden**0.5)
        maker.numbers(at + "mlp.experts.gate_up_proj_bias", count, 2 * inner, scale=0.3)
        maker.numbers(at + "mlp.experts.down_proj", count, inner, hidden, scale=1.2 / inner**0.5)
        maker.numbers(at + "mlp.experts.down_proj_bias", count, hidden, scale=0.3)
        return
    mixtral = tiny.family == "mixtral"
    block = "block_sparse_moe" if mixtral else "mlp"
    count = tiny.extra.get("num_local_experts", 4) if mixtral else tiny.extra["num_experts"]
    maker.linear(f"{at}{block}.gate", count, hidden, False)
    for e in range(count):
        for name in ("w1", "w3") if mixtral else ("gate_proj", "up_proj"):
            maker.linear(f"{at}{block}.experts.{e}.{name}", inner, hidden, False)
        maker.linear(f"{at}{block}.experts.{e}.{'w2' if mixtral else 'down_proj'}", hidden, inner, False)


def _gpt2(maker: Maker) -> None:
    """GPT-2, whose matrices are (inputs, outputs), and GPT-BigCode, whose are not."""
    tiny, hidden, inner = maker.tiny, maker.tiny.hidden, maker.tiny.inner
    fused = (tiny.heads + 2 * tiny.kv_heads) * tiny.head_dim

    def matrix(name: str, inputs: int, outputs: int) -> None:
        if tiny.family == "gpt2":
            maker.transposed(name, inputs, outputs)
        else:
            maker.linear(name, outputs, inputs, True)

    maker.numbers("transformer.wte.weight", tiny.vocab, hidden, scale=0.25)
    maker.numbers("transformer.wpe.weight", tiny.positions, hidden, scale=1.0)
    for layer in range(tiny.layers):
        at = f"transformer.h.{layer}."
        maker.norm(at + "ln_1", hidden, True)
        matrix(at + "attn.c_attn", hidden, fused)
        matrix(at + "attn.c_proj", hidden, hidden)
        maker.norm(at + "ln_2", hidden, True)
        matrix(at + "mlp.c_fc", hidden, inner)
        matrix(at + "mlp.c_proj", inner, hidden)
    maker.norm("transformer.ln_f", hidden, True)


def _gpt_neox(maker: Maker) -> None:
    tiny, hidden, inner = maker.tiny, maker.tiny.hidden, maker.tiny.inner
    maker.embeddings("gpt_neox.embed_in.weight", "embed_out.weight")
    for layer in range(tiny.layers):
        at = f"gpt_neox.layers.{layer}."
        maker.norm(at + "input_layernorm", hidden, True)
        maker.norm(at + "post_attention_layernorm", hidden, True)
        maker.linear(at + "attention.query_key_value", 3 * hidden, hidden, True)
        maker.linear(at + "attention.dense", hidden, hidden, True)
        maker.linear(at + "mlp.dense_h_to_4h", inner, hidden, True)
        maker.linear(at + "mlp.dense_4h_to_h", hidden, inner, True)
    maker.norm("gpt_neox.final_layer_norm", hidden, True)


def _falcon(maker: Maker) -> None:
    tiny, hidden, inner = maker.tiny, maker.tiny.hidden, maker.tiny.inner
    grouped = tiny.extra.get("new_decoder_architecture", False)
    maker.embeddings("transformer.word_embeddings.weight", "lm_head.weight")
    for layer in range(tiny.layers):
        at = f"transformer.h.{layer}."
        for name in ("ln_attn", "ln_mlp") if grouped else ("input_layernorm",):
            maker.norm(at + name, hidden, True)
        fused = (tiny.heads + 2 * tiny.kv_heads) * tiny.head_dim
        maker.linear(at + "self_attention.query_key_value", fused, hidden, False)
        maker.linear(at + "self_attention.dense", hidden, hidden, False)
        maker.linear(at + "mlp.dense_h_to_4h", inner, hidden, False)
        maker.linear(at + "mlp.dense_4h_to_h", hidden, inner, False)
    maker.norm("transformer.ln_f", hidden, True)
