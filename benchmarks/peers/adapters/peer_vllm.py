"""vLLM on a CPU, in this process, driven step by step."""

from __future__ import annotations

import os
from importlib.metadata import version
from typing import Any

from protocol import Timeline, serve


class Vllm:
    """vLLM's engine with prefix caching, weights and cache in bfloat16, and its default compilation."""

    def __init__(self, model: str, threads: int, options: dict[str, Any]) -> None:
        os.environ.update(
            VLLM_ENABLE_V1_MULTIPROCESSING="0",  # the engine in this process: no second one that polls
            VLLM_CPU_KVCACHE_SPACE="1",  # GiB
            VLLM_CPU_OMP_THREADS_BIND=",".join(map(str, sorted(os.sched_getaffinity(0))[:threads])),
            VLLM_NO_USAGE_STATS="1",
            HF_HUB_OFFLINE="1",
            OMP_NUM_THREADS=str(threads),
        )
        from vllm import LLM

        self._engine = LLM(
            model, dtype="bfloat16", max_model_len=8192, max_num_seqs=64, enable_prefix_caching=True, **options
        ).llm_engine
        self._requests = 0
        self.about = {"version": version("vllm-cpu"), "weights": "bf16", "cache": "bf16"}

    def run(self, prompts: list[list[int]], new_tokens: int, timeline: Timeline) -> list[list[int]]:
        """One request a prompt; its outputs are told apart by their ids."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        params = SamplingParams(
            temperature=0.0, max_tokens=new_tokens, ignore_eos=True, detokenize=False,
            output_kind=RequestOutputKind.DELTA,
        )  # fmt: skip
        numbers: dict[str, int] = {}
        for number, prompt in enumerate(prompts):
            self._requests += 1
            numbers[str(self._requests)] = number
            self._engine.add_request(str(self._requests), {"prompt_token_ids": prompt}, params)
        answers: list[list[int]] = [[] for _ in prompts]
        while self._engine.has_unfinished_requests():
            outputs = self._engine.step()
            timeline.step(numbers[output.request_id] for output in outputs)
            for output in outputs:
                answers[numbers[output.request_id]].extend(output.outputs[0].token_ids)
        return answers


if __name__ == "__main__":
    serve(Vllm)
