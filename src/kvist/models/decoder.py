"""The one decoder: a transformer's step as a program, driven by config fields."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from kvist.cache.policy import Choice, Span
from kvist.kernels.program import (
    Attend,
    Buffer,
    Cap,
    Embed,
    Expert,
    Experts,
    Floats,
    Gate,
    Matmul,
    Mix,
    Norm,
    Op,
    Program,
    Rotary,
    RotaryStore,
    Seal,
    Sketch,
    Weight,
)
from kvist.models.config import ModelConfig, padded

Matrices = Mapping[str, Weight]
Vectors = Mapping[str, Floats]


def build_program(
    config: ModelConfig,
    matrices: Matrices,
    vectors: Vectors,
    rotary: Rotary | None,
    local: Rotary | None = None,
    spans: Sequence[Span] | None = None,
    turns: tuple[Rotary | None, Rotary | None] = (None, None),
    packed: Mapping[int, Mix | None] | None = None,
    choices: Sequence[Choice | None] | None = None,
    means: Mapping[int, Floats] | None = None,
) -> Program:
    """Write the step of a model as a program.

    Embed; per layer attention and MLP, each added to the residual stream; norm and head on sampled rows.

    matrices and vectors are named by role: "embed", "layers.0.q", "layers.0.q.bias", ... (see `families`); biases may
    be absent. local: rotary angles of the layers with a window, where they have their own. spans: what a token sees in
    each layer (None: as the model has it). turns: angles that turn queries back towards sinks, and the local ones.
    packed: the layers whose pages are packed, and how their heads are turned for it. choices: how many pages a token
    chooses to read in each layer (None: all it sees). means: what is taken from the keys of layers.
    """
    seen = spans or [Span(config.window(layer)) for layer in range(config.num_layers)]
    chosen = choices or [None] * config.num_layers
    return _Writer(config, matrices, vectors, rotary, local, seen, turns, packed or {}, chosen, means or {}).program()


class _Writer:
    """Writes the ops of one model. `x` is the residual stream, `h` what attention reads, `m` what the MLP reads."""

    def __init__(
        self, config: ModelConfig, matrices: Matrices, vectors: Vectors, rotary: Rotary | None, local: Rotary | None,
        spans: Sequence[Span], turns: tuple[Rotary | None, Rotary | None], packed: Mapping[int, Mix | None],
        choices: Sequence[Choice | None], means: Mapping[int, Floats],
    ) -> None:  # fmt: skip
        self._config, self._matrices, self._vectors = config, matrices, vectors
        self._rotary, self._local, self._spans, self._turns, self._packed = rotary, local, spans, turns, packed
        self._choices, self._means = choices, means
        hidden, inner = padded(config.hidden_size), padded(config.intermediate_size)
        heads = config.num_heads * config.stored_head_dim
        kv_heads = config.num_kv_heads * config.stored_head_dim
        self._x, self._h, self._m = Buffer("x", hidden), Buffer("h", hidden), Buffer("m", hidden)
        self._q, self._k, self._v = Buffer("q", heads), Buffer("k", kv_heads), Buffer("v", kv_heads)
        self._a, self._gate, self._up = Buffer("attention", heads), Buffer("gate", inner), Buffer("up", inner)

    def program(self) -> Program:
        """All of it."""
        config, matrices = self._config, self._matrices
        last = Buffer("last", self._x.width, sampled=True)
        logits = Buffer("logits", padded(config.vocab_size), sampled=True)
        ops: list[Op] = [Embed(matrices["embed"], self._x, config.embed_scale, matrices.get("positions"))]
        for layer in range(config.num_layers):
            ops += self._layer(layer)
        head = len(ops)
        ops += [self._norm("final_norm", self._x, last), Matmul(last, matrices["head"], logits)]
        if config.logits_softcap is not None:
            ops.append(Cap(logits, logits, config.logits_softcap))
        return Program(
            tuple(ops), head, config.num_heads, config.num_kv_heads, config.stored_head_dim, config.num_layers,
            config.vocab_size,
        )  # fmt: skip

    def _layer(self, layer: int) -> list[Op]:
        config, at, x = self._config, f"layers.{layer}.", self._x
        h = self._h if config.pre_norms else x
        m = self._m if config.parallel and not config.shared_norm else h
        before = [self._norm(at + "attention_norm", x, h)] if config.pre_norms else []
        between = [self._norm(at + "mlp_norm", x, m)] if config.pre_norms and not config.shared_norm else []
        if config.parallel:  # both norms read x before anything is added to it
            before, between = before + between, []
        return [*before, *self._attention(layer, h), *between, *self._mlp(at, m)]

    def _attention(self, layer: int, h: Buffer) -> list[Op]:
        config, at, (window, first) = self._config, f"layers.{layer}.", self._spans[layer]
        q, k, v, a = self._q, self._k, self._v, self._a
        ops: list[Op] = [self._linear(at + "q", h, q), self._linear(at + "k", h, k), self._linear(at + "v", h, v)]
        if config.query_key_norm != "none":
            heads = config.query_key_norm == "heads"
            ops += [
                self._norm(at + "q_norm", q, q, config.num_heads, heads),
                self._norm(at + "k_norm", k, k, config.num_kv_heads, heads),
            ]
        local = config.window(layer) is not None and self._local is not None
        sinks = self._vectors[at + "sinks"] if config.sinks else None
        ops += [
            RotaryStore(
                q,
                k,
                v,
                layer,
                self._local if local else self._rotary,
                self._packed.get(layer),
                self._means.get(layer),
            ),
            *([Seal(layer)] if layer in self._packed else []),
            *([Sketch(layer)] if self._choices[layer] else []),
            Attend(
                q,
                a,
                layer,
                config.attention_scale,
                window,
                config.attention_softcap,
                sinks,
                first,
                self._turns[local] if first else None,
                self._packed.get(layer),
                self._choices[layer],
            ),
        ]
        return ops + self._added(at + "o", a, at + "attention_post_norm")

    def _mlp(self, at: str, m: Buffer) -> list[Op]:
        gate, up = self._gate, self._up
        if self._config.experts:
            return self._experts(at, m)
        if self._config.gated:
            ops: list[Op] = [self._linear(at + "gate", m, gate), self._linear(at + "up", m, up)]
            ops.append(Gate(gate, up, gate, self._config.activation))
        else:
            ops = [self._linear(at + "up", m, gate), Gate(gate, None, gate, self._config.activation)]
        return ops + self._added(at + "down", gate, at + "mlp_post_norm")

    def _experts(self, at: str, m: Buffer) -> list[Op]:
        config, logits = self._config, Buffer("router", padded(self._config.experts))
        roles = [f"{at}expert.{e}." for e in range(config.experts)]
        matrices, bias = self._matrices, self._vectors.get
        layer = tuple(
            Expert(
                matrices[role + "gate"], matrices[role + "up"], matrices[role + "down"], bias(role + "gate.bias"),
                bias(role + "up.bias"), bias(role + "down.bias"),
            )
            for role in roles
        )  # fmt: skip
        chosen, renormalise = config.experts_chosen, config.renormalise_experts
        return [
            self._linear(at + "router", m, logits),
            Experts(m, logits, self._x, self._x, layer, chosen, renormalise, config.activation, config.expert_clamp),
        ]

    def _added(self, role: str, source: Buffer, norm: str) -> list[Op]:
        """What a matmul gives, normed or not, added to the residual stream."""
        if not self._config.post_norms:
            return [self._linear(role, source, self._x, residual=self._x)]
        return [self._linear(role, source, self._m), self._norm(norm, self._m, self._x, residual=self._x)]

    def _linear(self, role: str, source: Buffer, out: Buffer, residual: Buffer | None = None) -> Matmul:
        return Matmul(source, self._matrices[role], out, self._vectors.get(f"{role}.bias"), residual)

    def _norm(
        self,
        role: str,
        source: Buffer,
        out: Buffer,
        heads: int = 0,
        alone: bool = False,
        residual: Buffer | None = None,
    ) -> Norm:
        """heads: the row is so many heads (0: the residual stream); alone: each is normed by itself."""
        config = self._config
        width = config.hidden_size if not heads else config.head_dim * (1 if alone else heads)
        return Norm(
            config.norm, source, out, self._vectors[role], self._vectors.get(f"{role}.bias"), config.norm_eps, width,
            residual, heads if alone else 1,
        )  # fmt: skip
