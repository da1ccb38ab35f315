"""An answer as JSON of a schema: only tokens that keep to it are chosen, and it is the same alone and in a batch."""

import json

from kvist import LLM, SamplingParams, StructuredOutputs

PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}, "likes": {"enum": ["trees", "birds"]}},
    "required": ["name", "age", "likes"],
    "additionalProperties": False,
}
QUESTION = [{"role": "user", "content": "Anna is 31 years old and plants trees. Who is she?"}]

with LLM("smollm2") as llm:
    params = SamplingParams(temperature=0, max_tokens=64, structured_outputs=StructuredOutputs(json=PERSON))
    text = llm.chat(QUESTION, params)[0].outputs[0].text
    print(text)
    choice = SamplingParams(temperature=0, structured_outputs=StructuredOutputs(choice=["tree", "bird"]))
    ids = llm.chat_ids(QUESTION)
    together = [output.outputs[0].text for output in llm.generate([ids, ids], [params, choice])]
    print(together[1])
    print("JSON, and alone = in a batch:", set(json.loads(text)) == set(PERSON["properties"]) and together[0] == text)
