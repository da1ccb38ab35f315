"""Eight answers to one long prompt share its pages: 62 full pages once, and one page each for what differs."""

from kvist import LLM, SamplingParams

with LLM("smollm2") as llm:
    prompt = llm.tokenizer.encode("A twig is a small branch of a tree. " * 120)[:1000]
    params = SamplingParams(temperature=0.9, seed=1, n=8, max_tokens=8, ignore_eos=True)
    most = 0
    for _ in llm.engine.stream(prompt, params):
        most = max(most, llm.engine.manager.stats().live)
    pages = llm.engine.manager.layout.pages_for(1000 + 7)  # the last token is never run
    print(f"{most} pages for 8 answers; each by itself would hold {pages}, together {8 * pages}")
    answers = llm.generate(prompt, params)[0].outputs
    alone = llm.generate(prompt, SamplingParams(temperature=0.9, seed=1, max_tokens=8, ignore_eos=True))[0].outputs
    print("the first is the answer without the others:", answers[0] == alone[0])
