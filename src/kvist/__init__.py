"""kvist: an LLM inference engine built around its KV cache."""
