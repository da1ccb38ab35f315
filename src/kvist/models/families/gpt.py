"""GPT-2 and its descendants: LayerNorm, biases, and, from GPT-J's time on, attention and MLP side by side."""

from __future__ import annotations

from dataclasses import replace

from kvist.models.families.table import (
    FIELDS,
    GGUF,
    GGUF_FUSED,
    LLAMA_LIKE,
    NAMES,
    Family,
    Source,
    Windows,
    fused,
    with_biases,
    without,
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
    hf=with_biases({
        "embed": Source("transformer.wte.weight"),
        "positions": Source("transformer.wpe.weight"),
        "final_norm": Source("transformer.ln_f.weight"),
        "head": Source("lm_head.weight"),
        "attention_norm": Source("transformer.h.{layer}.ln_1.weight"),
        **fused("transformer.h.{layer}.attn.c_attn.weight", transposed=True),
        "o": Source("transformer.h.{layer}.attn.c_proj.weight", transposed=True),
        "mlp_norm": Source("transformer.h.{layer}.ln_2.weight"),
        "up": Source("transformer.h.{layer}.mlp.c_fc.weight", transposed=True),
        "down": Source("transformer.h.{layer}.mlp.c_proj.weight", transposed=True),
    }),
    gguf=with_biases({**GGUF_FUSED, "positions": Source("position_embd.weight")}),
    unless={"scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False, "add_cross_attention": False},
)  # fmt: skip

GPT_BIGCODE = replace(
    GPT2,
    name="gpt_bigcode",
    architectures=("GPTBigCodeForCausalLM",),
    model_types=("gpt_bigcode",),
    gguf_architecture="starcoder",
    fixed={**GPT2.fixed, "num_kv_heads": 1},
    hf=with_biases({
        role: replace(source, transposed=False) for role, source in GPT2.hf.items() if not role.endswith(".bias")
    }),
    unless={"scale_attn_weights": True, "multi_query": True, "add_cross_attention": False},
)  # fmt: skip

STARCODER2 = Family(
    name="starcoder2",
    architectures=("Starcoder2ForCausalLM",),
    model_types=("starcoder2",),
    gguf_architecture="starcoder2",
    fields={**FIELDS, "norm_eps": ("norm_epsilon",)},
    fixed={
        "norm": "layer", "gated": False, "positions": "rotary", "activation": "gelu_tanh", "tie_embeddings": True,
        "norm_eps": 1e-5,
    },
    hf=with_biases({
        **without(NAMES, "gate"),
        "up": Source("model.layers.{layer}.mlp.c_fc.weight"),
        "down": Source("model.layers.{layer}.mlp.c_proj.weight"),
    }),
    gguf=with_biases(without(GGUF, "gate")),
    windows=Windows(),
)  # fmt: skip

GPT_NEOX = Family(
    name="gpt_neox",
    architectures=("GPTNeoXForCausalLM",),
    model_types=("gpt_neox",),
    gguf_architecture="gptneox",
    fields={
        **FIELDS,
        "norm_eps": ("layer_norm_eps",),
        "parallel": ("use_parallel_residual",),
    },
    fixed={
        "norm": "layer", "gated": False, "positions": "rotary", "activation": "gelu", "tie_embeddings": False,
        "parallel": True, "norm_eps": 1e-5,
    },
    hf=with_biases({
        "embed": Source("gpt_neox.embed_in.weight"),
        "final_norm": Source("gpt_neox.final_layer_norm.weight"),
        "head": Source("embed_out.weight"),
        "attention_norm": Source("gpt_neox.layers.{layer}.input_layernorm.weight"),
        **fused("gpt_neox.layers.{layer}.attention.query_key_value.weight", by_head=True),
        "o": Source("gpt_neox.layers.{layer}.attention.dense.weight"),
        "mlp_norm": Source("gpt_neox.layers.{layer}.post_attention_layernorm.weight"),
        "up": Source("gpt_neox.layers.{layer}.mlp.dense_h_to_4h.weight"),
        "down": Source("gpt_neox.layers.{layer}.mlp.dense_4h_to_h.weight"),
    }),
    gguf=with_biases(GGUF_FUSED),
    rotary_share=0.25,
    gguf_fields={"parallel": "use_parallel_residual"},
)  # fmt: skip

STABLELM = Family(
    name="stablelm",
    architectures=("StableLmForCausalLM",),
    model_types=("stablelm",),
    gguf_architecture="stablelm",
    fields={
        **FIELDS,
        "norm_eps": ("layer_norm_eps",),
        "parallel": ("use_parallel_residual",),
        "shared_norm": ("use_parallel_residual",),
    },
    fixed={**LLAMA_LIKE, "norm": "layer", "norm_eps": 1e-5},
    hf=with_biases(NAMES),
    gguf=with_biases(GGUF),
    unless={"qk_layernorm": False},
    rotary_share=0.25,
    gguf_fields={"parallel": "use_parallel_residual", "shared_norm": "use_parallel_residual"},
)

_FALCON_FIELDS = {
    "hidden_size": ("hidden_size", "n_embed"),
    "num_layers": ("num_hidden_layers", "n_layer"),
    "num_heads": ("num_attention_heads", "n_head"),
    "intermediate_size": ("ffn_hidden_size",),
    "max_positions": ("max_position_embeddings",),
    "norm_eps": ("layer_norm_epsilon",),
    "activation": ("activation",),
    "tie_embeddings": ("tie_word_embeddings",),
}
_FALCON_NAMES = {
    "embed": Source("transformer.word_embeddings.weight"),
    "final_norm": Source("transformer.ln_f.weight"),
    "head": Source("lm_head.weight"),
    **fused("transformer.h.{layer}.self_attention.query_key_value.weight", by_head=True),
    "o": Source("transformer.h.{layer}.self_attention.dense.weight"),
    "up": Source("transformer.h.{layer}.mlp.dense_h_to_4h.weight"),
    "down": Source("transformer.h.{layer}.mlp.dense_4h_to_h.weight"),
}

FALCON = Family(
    name="falcon",
    architectures=("FalconForCausalLM", "RWForCausalLM"),
    model_types=("falcon", "RefinedWebModel"),
    gguf_architecture="falcon",
    fields=_FALCON_FIELDS,
    fixed={
        "norm": "layer", "gated": False, "positions": "rotary", "activation": "gelu", "tie_embeddings": True,
        "parallel": True, "shared_norm": True, "num_kv_heads": 1, "max_positions": 2048, "norm_eps": 1e-5,
    },
    hf=with_biases({**_FALCON_NAMES, "attention_norm": Source("transformer.h.{layer}.input_layernorm.weight")}),
    gguf=with_biases(without(GGUF_FUSED, "mlp_norm")),
    unless={"alibi": False, "multi_query": True, "parallel_attn": True},
    when={"new_decoder_architecture": (None, False)},
)  # fmt: skip

FALCON_GROUPED = replace(
    FALCON,
    name="falcon-grouped",
    gguf_architecture="",
    fields={**_FALCON_FIELDS, "num_kv_heads": ("num_kv_heads", "n_head_kv")},
    fixed={**{name: value for name, value in FALCON.fixed.items() if name != "num_kv_heads"}, "shared_norm": False},
    hf=with_biases({
        **_FALCON_NAMES,
        "attention_norm": Source("transformer.h.{layer}.ln_attn.weight"),
        "mlp_norm": Source("transformer.h.{layer}.ln_mlp.weight"),
    }),
    unless={"alibi": False},
    when={"new_decoder_architecture": (True,), "num_ln_in_parallel_attn": (None, 2)},
)  # fmt: skip
