"""Generate text: one prompt, then several in one batch. The batch changes no answer."""

from kvist import LLM, SamplingParams

PROMPTS = ["The capital of Sweden is", "A twig is", "Two plus two is"]

with LLM("smollm2") as llm:
    params = SamplingParams(temperature=0, max_tokens=16)
    alone = [llm.generate(prompt, params)[0].outputs[0].text for prompt in PROMPTS]
    together = [output.outputs[0].text for output in llm.generate(PROMPTS, params)]
    for prompt, text in zip(PROMPTS, together, strict=True):
        print(f"{prompt}|{text!r}")
    print("alone = in a batch:", alone == together)
