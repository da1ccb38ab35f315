"""Gemma: embeddings scaled, norms that multiply by 1 + w (llama.cpp's converter has added the 1)."""

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
    Names,
    Source,
    Windows,
    with_biases,
)


def _one_more(sources: Names) -> dict[str, Source]:
    """Norms multiply by 1 + w."""
    return {role: replace(s, offset=1.0) if role.endswith("norm") else s for role, s in sources.items()}


_SANDWICH: Names = {
    **NAMES,
    "attention_post_norm": Source("model.layers.{layer}.post_attention_layernorm.weight"),
    "mlp_norm": Source("model.layers.{layer}.pre_feedforward_layernorm.weight"),
    "mlp_post_norm": Source("model.layers.{layer}.post_feedforward_layernorm.weight"),
}

GEMMA = Family(
    name="gemma",
    architectures=("GemmaForCausalLM",),
    model_types=("gemma",),
    gguf_architecture="gemma",
    fields={name: keys for name, keys in FIELDS.items() if name != "activation"},  # its files say gelu, and mean tanh's
    fixed={
        **LLAMA_LIKE, "activation": "gelu_tanh", "tie_embeddings": True, "scaled_embedding": True, "head_dim": 256,
        "norm_eps": 1e-6,
    },
    hf=with_biases(_one_more(NAMES)),
    gguf=with_biases(GGUF),
)  # fmt: skip

GEMMA2 = replace(
    GEMMA,
    name="gemma2",
    architectures=("Gemma2ForCausalLM",),
    model_types=("gemma2",),
    gguf_architecture="gemma2",
    fields={
        **FIELDS,
        "activation": ("hidden_activation",),
        "query_scalar": ("query_pre_attn_scalar",),
        "attention_softcap": ("attn_logit_softcapping",),
        "logits_softcap": ("final_logit_softcapping",),
    },
    fixed={
        **GEMMA.fixed, "post_norms": True, "max_positions": 8192, "attention_softcap": 50.0, "logits_softcap": 30.0,
    },
    hf=with_biases(_one_more(_SANDWICH)),
    gguf=with_biases({**GGUF, **GGUF_POST_NORMS}),
    unless={"use_bidirectional_attention": False},
    windows=Windows(every=2),
    gguf_fields={"attention_softcap": "attn_logit_softcapping", "logits_softcap": "final_logit_softcapping"},
    gguf_by_layers={46: {"query_scalar": 144}},  # 27B; the others have their head size
)  # fmt: skip

GEMMA3 = replace(
    GEMMA2,
    name="gemma3",
    architectures=("Gemma3ForCausalLM",),
    model_types=("gemma3_text",),
    gguf_architecture="gemma3",
    fixed={
        **GEMMA.fixed, "post_norms": True, "max_positions": 131072, "query_key_norm": "heads", "rope_theta": 1e6,
        "local_rope_theta": 1e4,
    },
    hf=with_biases(_one_more({**_SANDWICH, **QUERY_KEY_NORMS})),
    gguf=with_biases({**GGUF, **GGUF_POST_NORMS, **GGUF_QUERY_KEY_NORMS}),
    unless={"use_bidirectional_attention": False},
    windows=Windows(every=6, every_key="sliding_window_pattern"),
    gguf_by_layers={62: {"query_scalar": 168}},  # 27B
)  # fmt: skip
