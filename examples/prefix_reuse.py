"""Ask two questions about one long text. The second finds the text in the cache, and its answer is the same as if it
had not.
"""

from kvist import LLM, SamplingParams

TEXT = "A conversation is a path through a tree of tokens. Every twig of that tree is computed once. " * 20
PARAMS = SamplingParams(temperature=0, max_tokens=12)

with LLM("smollm2") as llm:
    for question in ("What is a conversation?", "What is computed once?"):
        output = llm.generate(f"{TEXT}\nQuestion: {question}\nAnswer:", PARAMS)[0]
        metrics = output.metrics
        print(f"{question} {output.outputs[0].text!r}")
        print(f"  {metrics.prompt_tokens} prompt tokens, {metrics.cached_tokens} from the cache, first token after "
              f"{1000 * (metrics.time_to_first_token or 0):.0f} ms")  # fmt: skip
    warm = output.outputs[0].text
    llm.engine.manager.flush()
    cold = llm.generate(f"{TEXT}\nQuestion: {question}\nAnswer:", PARAMS)[0].outputs[0].text
    print("warm = cold:", warm == cold)
