"""The one decoder: a transformer's step as a program, driven by config fields."""

from __future__ import annotations

import math
from collections.abc import Mapping

from kvist.kernels.program import (
    Attend,
    Buffer,
    Embed,
    Floats,
    Gate,
    Matmul,
    Norm,
    Op,
    Program,
    Rotary,
    RotaryStore,
    Weight,
)
from kvist.models.config import ModelConfig, padded

Matrices = Mapping[str, Weight]
Vectors = Mapping[str, Floats]


def build_program(config: ModelConfig, matrices: Matrices, vectors: Vectors, rotary: Rotary | None) -> Program:
    """Write the step of a model as a program.

    Embed; per layer attention and MLP, each added to the residual stream; norm and head on sampled rows.

    matrices and vectors are named by role: "embed", "layers.0.q", "layers.0.q.bias", ... (see `families`); biases may
    be absent.
    """
    hidden, inner = padded(config.hidden_size), padded(config.intermediate_size)
    heads = config.num_heads * config.stored_head_dim
    kv_heads = config.num_kv_heads * config.stored_head_dim
    x, h = Buffer("x", hidden), Buffer("h", hidden)
    q, k, v, a = Buffer("q", heads), Buffer("k", kv_heads), Buffer("v", kv_heads), Buffer("attention", heads)
    gate, up = Buffer("gate", inner), Buffer("up", inner)
    last, logits = Buffer("last", hidden, sampled=True), Buffer("logits", padded(config.vocab_size), sampled=True)

    def norm(role: str, source: Buffer, out: Buffer) -> Norm:
        return Norm(
            config.norm, source, out, vectors[role], vectors.get(f"{role}.bias"), config.norm_eps, config.hidden_size
        )

    def linear(role: str, source: Buffer, out: Buffer, residual: Buffer | None = None) -> Matmul:
        return Matmul(source, matrices[role], out, vectors.get(f"{role}.bias"), residual)

    ops: list[Op] = [Embed(matrices["embed"], x, positions=matrices.get("positions"))]
    for layer in range(config.num_layers):
        at = f"layers.{layer}."
        ops += [
            norm(at + "attention_norm", x, h),
            linear(at + "q", h, q),
            linear(at + "k", h, k),
            linear(at + "v", h, v),
            RotaryStore(q, k, v, layer, rotary),
            Attend(q, a, layer, 1 / math.sqrt(config.head_dim)),
            linear(at + "o", a, x, residual=x),
            norm(at + "mlp_norm", x, h),
        ]
        if config.gated:
            ops += [linear(at + "gate", h, gate), linear(at + "up", h, up), Gate(gate, up, gate, config.activation)]
        else:
            ops += [linear(at + "up", h, gate), Gate(gate, None, gate, config.activation)]
        ops.append(linear(at + "down", gate, x, residual=x))
    head = len(ops)
    ops += [norm("final_norm", x, last), Matmul(last, matrices["head"], logits)]
    return Program(
        tuple(ops),
        head,
        config.num_heads,
        config.num_kv_heads,
        config.stored_head_dim,
        config.num_layers,
        config.vocab_size,
    )
