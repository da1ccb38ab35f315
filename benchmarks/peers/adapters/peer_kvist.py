"""kvist, driven step by step through the engine of its public `LLM`."""

from __future__ import annotations

from typing import Any

from protocol import Timeline, serve


class Kvist:
    """kvist with its defaults; `weights` is the type the weights are held in.

    Its pages' memory is provided at the start: engines that fill the same memory again and again have it from there on.
    """

    def __init__(self, model: str, threads: int, options: dict[str, Any]) -> None:
        from kvist import LLM, __version__

        self._llm = LLM(model, threads=threads, max_num_seqs=64, prefault=True, **options)
        codec = self._llm.engine.manager.layout.codec.name
        self.about = {"version": __version__, "weights": options["weights"], "cache": codec}

    def run(self, prompts: list[list[int]], new_tokens: int, timeline: Timeline) -> list[list[int]]:
        """One request a prompt; a step says who got a token."""
        from kvist import SamplingParams

        engine = self._llm.engine
        params = SamplingParams(temperature=0.0, max_tokens=new_tokens, ignore_eos=True)
        numbers = {engine.submit(prompt, params): number for number, prompt in enumerate(prompts)}
        answers: list[list[int]] = [[] for _ in prompts]
        while engine.has_work:
            outputs = engine.step()
            timeline.step(numbers[output.request_id] for output in outputs)
            for output in outputs:
                if output.token_id is not None:
                    answers[numbers[output.request_id]].append(output.token_id)
        return answers


if __name__ == "__main__":
    serve(Kvist)
