"""A random model of each family, of about SmolLM2-135M's size, as the tests write their tiny ones.

What makes a family what it is stays as in its real models: vocabulary, head size, windows, how many query heads share a
KV head, how wide an MLP is. What is left is cut until 120 to 165 million parameters remain. Embeddings are tied where
two with the family's vocabulary would be most of the model. A mixture has that size with all its experts.
"""

from __future__ import annotations

from tiny_models import GEMMA, YARN, Tiny

POSITIONS = 2560  # the longest workload has 2,049
SMALL = {"heads": 12, "kv_heads": 12, "head_dim": 64, "hidden": 768, "inner": 3072, "layers": 12}  # GPT-2's own
QWEN = {"hidden": 512, "heads": 8, "vocab": 151936, "layers": 16, "tied": True}
GEMMAS = {"hidden": 384, "head_dim": 256, "vocab": 256000, "tied": True}
MIXTURE = {"hidden": 384, "heads": 8, "kv_heads": 2, "head_dim": 64, "layers": 12, "tied": True}


def _tiny(family: str, /, name: str = "", **sizes: object) -> Tiny:
    return Tiny(name or family, family, **{"positions": POSITIONS, **sizes})  # type: ignore[arg-type]


SHAPES: dict[str, Tiny] = {
    shape.name: shape
    for shape in (
        # SmolLM2-135M itself: what the others are compared with
        _tiny("llama", hidden=576, heads=9, kv_heads=3, head_dim=64, inner=1536, vocab=49152, layers=30, tied=True),
        _tiny("mistral", hidden=768, heads=12, kv_heads=3, head_dim=64, inner=2688, vocab=32000, layers=12,
              extra={"sliding_window": 1024}),
        _tiny("qwen2", **QWEN, kv_heads=2, head_dim=64, inner=2048),
        _tiny("qwen3", **QWEN, kv_heads=4, head_dim=128, inner=1536),
        _tiny("olmo2", hidden=640, heads=5, kv_heads=5, head_dim=128, inner=2560, vocab=100352, layers=12, tied=True),
        _tiny("phi3", hidden=768, heads=8, kv_heads=8, head_dim=96, inner=2048, vocab=32064, layers=12,
              extra={"sliding_window": 2047}),
        _tiny("gemma", **GEMMAS, heads=2, kv_heads=1, inner=2304, layers=18),
        _tiny("gemma2", **GEMMAS, heads=4, kv_heads=2, inner=1536, layers=16, extra={
            **GEMMA, "query_pre_attn_scalar": 256, "sliding_window": 512, "attn_logit_softcapping": 50.0,
            "final_logit_softcapping": 30.0,
        }),
        _tiny("gemma3", **{**GEMMAS, "vocab": 262144}, heads=4, kv_heads=1, inner=1536, layers=18, extra={
            **GEMMA, "query_pre_attn_scalar": 256, "sliding_window": 512, "sliding_window_pattern": 6,
            "rope_local_base_freq": 10000.0,
        }),
        _tiny("gpt2", **SMALL, vocab=50257, tied=True, biases=True),
        _tiny("gpt_bigcode", **{**SMALL, "kv_heads": 1, "layers": 20}, vocab=49152, tied=True, biases=True),
        _tiny("starcoder2", **{**SMALL, "kv_heads": 2, "layers": 14}, vocab=49152, tied=True, biases=True,
              extra={"sliding_window": 1024}),
        _tiny("gpt_neox", **SMALL, vocab=50304, biases=True, extra={"rotary_pct": 0.25}),  # Pythia-160M
        _tiny("stablelm", **{**SMALL, "inner": 2048}, vocab=50304,
              extra={"use_qkv_bias": True, "partial_rotary_factor": 0.25}),
        _tiny("falcon", **{**SMALL, "kv_heads": 1}, vocab=65024, tied=True),
        _tiny("falcon", "falcon-grouped", **{**SMALL, "kv_heads": 2}, vocab=65024, tied=True,
              extra={"new_decoder_architecture": True, "num_kv_heads": 2}),
        _tiny("mixtral", hidden=512, heads=8, kv_heads=2, head_dim=64, inner=704, vocab=32000, layers=12,
              extra={"num_local_experts": 8, "num_experts_per_tok": 2}),
        _tiny("qwen3_moe", **{**MIXTURE, "layers": 10}, inner=192, vocab=151936,
              extra={"num_experts": 32, "num_experts_per_tok": 4}),
        _tiny("gpt_oss", **MIXTURE, inner=256, vocab=201088, biases=True,
              extra={"num_local_experts": 16, "num_experts_per_tok": 4, "sliding_window": 128},
              rope_scaling={**YARN, "original_max_position_embeddings": 1024}),
    )
}  # fmt: skip
"""By name: the family's, or a variant of it."""
