"""OpenVINO GenAI's continuous-batching pipeline, driven step by step."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from protocol import Timeline, serve


class OpenVino:
    """The paged pipeline with prefix caching; `cache` is the precision of K and V: f16, or u8, its own default."""

    def __init__(self, model: str, threads: int, options: dict[str, Any]) -> None:
        import openvino_genai

        scheduler = openvino_genai.SchedulerConfig()
        scheduler.cache_size = 1  # GiB
        scheduler.enable_prefix_caching = True
        scheduler.max_num_seqs = 64
        scheduler.max_num_batched_tokens = options["batched_tokens"]
        self._pipeline = openvino_genai.ContinuousBatchingPipeline(
            model,
            scheduler_config=scheduler,
            device="CPU",
            properties={
                "INFERENCE_NUM_THREADS": threads,
                "PERFORMANCE_HINT": "LATENCY",
                "KV_CACHE_PRECISION": options["cache"],
            },
        )
        self._requests = 0
        self.about = {"version": version("openvino-genai"), "weights": "fp16", "cache": options["cache"]}

    def run(self, prompts: list[list[int]], new_tokens: int, timeline: Timeline) -> list[list[int]]:
        """One request a prompt; its handle gives the tokens of a step."""
        import numpy as np
        import openvino
        import openvino_genai

        config = openvino_genai.GenerationConfig()
        config.max_new_tokens = config.min_new_tokens = new_tokens
        config.ignore_eos = True
        config.do_sample = False
        handles = []
        for prompt in prompts:
            self._requests += 1
            ids = openvino.Tensor(np.array([prompt], np.int64))
            handles.append(self._pipeline.add_request(self._requests, ids, config))
        answers: list[list[int]] = [[] for _ in prompts]
        while self._pipeline.has_non_finished_requests():
            self._pipeline.step()
            got = []
            for number, handle in enumerate(handles):
                if handle.can_read():
                    for output in handle.read().values():
                        answers[number].extend(output.generated_ids)
                        got.append(number)
            timeline.step(got)
        return answers


if __name__ == "__main__":
    serve(OpenVino)
