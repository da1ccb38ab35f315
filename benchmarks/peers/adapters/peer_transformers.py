"""transformers: a plain greedy loop of `generate`, one batch a call."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from protocol import Timeline, serve


class Transformers:
    """A bfloat16 model with scaled-dot-product attention and the dynamic cache.

    transformers has no prefix cache of its own: the cache of the last call is kept here, cut to the prefix that a
    prompt shares with it and handed back, as its documentation shows.
    """

    def __init__(self, model: str, threads: int, options: dict[str, Any]) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        torch.set_num_threads(threads)
        self._model = AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16, attn_implementation="sdpa")
        self._model.eval()
        self._prompts: list[list[int]] = []
        self._cache: Any = None
        self.about = {"version": version("transformers"), "weights": "bf16", "cache": "bf16"}

    def run(self, prompts: list[list[int]], new_tokens: int, timeline: Timeline) -> list[list[int]]:
        """A stopping rule that never stops is told every step, after its token was chosen."""
        import torch
        from transformers import StoppingCriteriaList

        def told(ids: Any, scores: Any, **_: Any) -> Any:
            timeline.step(range(len(prompts)))
            return torch.zeros(len(prompts), dtype=torch.bool)

        cache = None
        if prompts == self._prompts:
            cache = self._cache
            cache.crop(len(prompts[0]) - 1 - cache.get_seq_length())  # negative: so many tokens less
        ids = torch.tensor(prompts)
        with torch.inference_mode():
            found = self._model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                past_key_values=cache,
                max_new_tokens=new_tokens,
                do_sample=False,
                eos_token_id=None,
                pad_token_id=0,
                stopping_criteria=StoppingCriteriaList([told]),
                return_dict_in_generate=True,
            )
        self._prompts, self._cache = prompts, found.past_key_values
        answers: list[list[int]] = found.sequences[:, ids.shape[1] :].tolist()
        return answers


if __name__ == "__main__":
    serve(Transformers)
