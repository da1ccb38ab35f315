"""What a row of the table of families says, and names that kin share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Rows = Literal["all", "q", "k", "v", "gate", "up"]
Names = Mapping[str, "Source"]


@dataclass(frozen=True, slots=True)
class Source:
    """Where a role lies in a file: a tensor's name ("{layer}", "{expert}" are filled in), and what must be done to it.

    rows: the part of a fused matrix: of q, k, v, or of gate, up. by_head: a fused q, k, v lies KV head by KV head, each
    with its queries, its key and its value. transposed: stored as (inputs, outputs). interleaved: rotary pairs are
    neighbours (2i, 2i + 1); rows are reordered to halves (i, i + half). offset: added to a vector (Gemma's norms
    multiply by 1 + w). stacked: all experts one after the other, a role being one of them. alternating: gate and up
    lie row by row in turns.
    """

    name: str
    rows: Rows = "all"
    by_head: bool = False
    transposed: bool = False
    interleaved: bool = False
    offset: float = 0.0
    stacked: bool = False
    alternating: bool = False


@dataclass(frozen=True, slots=True)
class Windows:
    """How a config says which layers have a sliding window, where it does not list them (``layer_types``).

    every: layers every, 2 every, ... see everything, counted from 1 (0: none does); every_key: the key that says
    another number. switch: the key that must be true for any window. first_key: the key of the first layer with one.
    """

    every: int = 0
    every_key: str = ""
    switch: str = ""
    first_key: str = ""


@dataclass(frozen=True, slots=True)
class Family:
    """One row of the table.

    `fields`: config field -> keys of config.json, the first present counts; `fixed`: fields that do not vary, or what
    they are where the file is silent; `gguf_fields`: config field -> key of a GGUF file, beyond those all have.

    `when`: keys of config.json and the values that make it this family's, where several share an architecture.
    `unless`: keys of config.json that change the arithmetic, with the only value kvist runs. `rotary_share`: the part
    of a head that is turned, where the file is silent. `gguf_by_layers`: fields that the format has no word for, and
    llama.cpp too derives from the number of layers.
    """

    name: str
    architectures: tuple[str, ...]
    model_types: tuple[str, ...]
    gguf_architecture: str
    fields: Mapping[str, tuple[str, ...]]
    fixed: Mapping[str, object]
    hf: Names
    gguf: Names
    unless: Mapping[str, object] = field(default_factory=dict)
    when: Mapping[str, tuple[object, ...]] = field(default_factory=dict)
    windows: Windows | None = None
    rotary_share: float = 1.0
    gguf_fields: Mapping[str, str] = field(default_factory=dict)
    gguf_by_layers: Mapping[int, Mapping[str, object]] = field(default_factory=dict)

    @property
    def is_mixture(self) -> bool:
        """Whether its MLP is a mixture of experts."""
        return "router" in self.hf


def with_biases(sources: Names) -> dict[str, Source]:
    """Each "X.weight" also as its "X.bias", to be taken if the file has it."""
    biases = {
        f"{role}.bias": Source(
            source.name.removesuffix("weight") + "bias", source.rows, source.by_head, interleaved=source.interleaved
        )
        for role, source in sources.items()
        if source.name.endswith(".weight") and role not in ("embed", "positions", "head") and not source.offset
    }
    return {**sources, **biases}


def experts(router: str, gate: Source, up: Source, down: Source) -> dict[str, Source]:
    """A mixture of experts in place of gate, up and down."""
    return {
        "router": Source(router),
        "expert.{expert}.gate": gate,
        "expert.{expert}.up": up,
        "expert.{expert}.down": down,
    }


def fused(name: str, by_head: bool = False, transposed: bool = False) -> dict[str, Source]:
    """q, k and v as parts of one matrix."""
    rows: tuple[Literal["q", "k", "v"], ...] = ("q", "k", "v")
    return {role: Source(name, role, by_head, transposed) for role in rows}


def without(sources: Names, *roles: str) -> dict[str, Source]:
    """The names without some roles."""
    return {role: source for role, source in sources.items() if role not in roles}


FIELDS: Mapping[str, tuple[str, ...]] = {
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
}
"""Keys as Llama's config.json has them, and most since."""

NAMES: Names = {
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
"""Names of weights as Llama's folder has them, and most since."""

QUERY_KEY_NORMS: Names = {
    "q_norm": Source("model.layers.{layer}.self_attn.q_norm.weight"),
    "k_norm": Source("model.layers.{layer}.self_attn.k_norm.weight"),
}

GGUF: Names = {
    "embed": Source("token_embd.weight"),
    "final_norm": Source("output_norm.weight"),
    "head": Source("output.weight"),
    "attention_norm": Source("blk.{layer}.attn_norm.weight"),
    "q": Source("blk.{layer}.attn_q.weight"),
    "k": Source("blk.{layer}.attn_k.weight"),
    "v": Source("blk.{layer}.attn_v.weight"),
    "o": Source("blk.{layer}.attn_output.weight"),
    "mlp_norm": Source("blk.{layer}.ffn_norm.weight"),
    "gate": Source("blk.{layer}.ffn_gate.weight"),
    "up": Source("blk.{layer}.ffn_up.weight"),
    "down": Source("blk.{layer}.ffn_down.weight"),
}
"""Names in a GGUF file. llama.cpp interleaves the rows of q and k of the architecture "llama" alone."""

GGUF_FUSED: Names = {**without(GGUF, "gate"), **fused("blk.{layer}.attn_qkv.weight")}
"""A GGUF file's q, k and v in one matrix, one after the other whatever the folder had; no gate."""

GGUF_QUERY_KEY_NORMS: Names = {
    "q_norm": Source("blk.{layer}.attn_q_norm.weight"),
    "k_norm": Source("blk.{layer}.attn_k_norm.weight"),
}
GGUF_POST_NORMS: Names = {
    "attention_post_norm": Source("blk.{layer}.post_attention_norm.weight"),
    "mlp_post_norm": Source("blk.{layer}.post_ffw_norm.weight"),
}

LLAMA_LIKE: Mapping[str, object] = {
    "norm": "rms", "gated": True, "positions": "rotary", "activation": "silu", "tie_embeddings": False,
}  # fmt: skip
