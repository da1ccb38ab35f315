"""A conversation that is forked and rolled back: what it says is what a fresh request with the same tokens says."""

from kvist import LLM, SamplingParams

PARAMS = SamplingParams(temperature=0, max_tokens=24)


def question(text: str) -> list[dict[str, str]]:
    """A message from the user."""
    return [{"role": "user", "content": text}]


with LLM("smollm2") as llm, llm.session() as session:
    session.append(question("Name three trees that grow in Sweden."))
    session.generate(PARAMS)
    here = session.mark()
    other = session.fork()
    other.append(question("Which of them is the tallest?"))
    session.append(question("Now name three birds."))
    session.generate(PARAMS)
    session.rollback(here)
    session.append(question("Which of them is the tallest?"))
    for name, one in (("fork", other), ("rolled back", session)):
        tokens = len(one)
        output = one.generate(PARAMS)
        print(f"{name}: {output.metrics.cached_tokens} of {tokens} tokens were in the cache")
    llm.engine.manager.flush()
    fresh = llm.generate([output.prompt_token_ids], PARAMS)[0].outputs[0]
    print("forked = rolled back = fresh:", other.messages[-1] == session.messages[-1] and output.outputs[0] == fresh)
