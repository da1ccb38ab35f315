"""Families of models as data: where a file says each config field, and what it calls each weight.

A new family is a row here, beside its kin. If it needs arithmetic of its own, that becomes a field of `ModelConfig`,
never a test on a name. Weights are named by role: "embed", "positions", "final_norm", "head", and per layer
"attention_norm", "q", "k", "v", "q_norm", "k_norm", "sinks", "o", "attention_post_norm", "mlp_norm", "gate", "up",
"down", "mlp_post_norm", or for these three "router" and "expert.0.gate", "expert.0.up", "expert.0.down", ...; most also
with ".bias". "head" may be absent (tied to "embed"), so may every bias.
"""

from __future__ import annotations

from kvist.models.families.gemma import GEMMA, GEMMA2, GEMMA3
from kvist.models.families.gpt import FALCON, FALCON_GROUPED, GPT2, GPT_BIGCODE, GPT_NEOX, STABLELM, STARCODER2
from kvist.models.families.llama import LLAMA, MISTRAL, OLMO2, PHI3, QWEN2, QWEN3
from kvist.models.families.mixtures import GPT_OSS, MIXTRAL, QWEN3_MOE
from kvist.models.families.table import Family, Source, Windows

__all__ = ["ACTIVATION_NAMES", "FAMILIES", "Family", "Source", "Windows"]

FAMILIES: tuple[Family, ...] = (
    LLAMA, GPT2, MISTRAL, QWEN2, QWEN3, PHI3, OLMO2, GEMMA, GEMMA2, GEMMA3, GPT_BIGCODE, STARCODER2, GPT_NEOX, STABLELM,
    FALCON, FALCON_GROUPED, MIXTRAL, QWEN3_MOE, GPT_OSS,
)  # fmt: skip

ACTIVATION_NAMES = {
    "silu": "silu",
    "swish": "silu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu": "gelu",
}
"""What config.json calls an activation -> ours."""
