"""A method: how the numbers of K and V are stored, and which positions a query may read."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from kvist.assemble import assemble
from kvist.cache.codec.choice import meaning
from kvist.config import EngineConfig
from kvist.engine.engine import Engine
from kvist.errors import UsageError
from kvist.llm import LLM

FULL = "full"


@dataclass(frozen=True, slots=True)
class Method:
    """A codec of the pages and a policy, by the names that `EngineConfig` takes."""

    codec: str
    policy: str = FULL

    @property
    def name(self) -> str:
        """What tables and plots call it."""
        return self.codec if self.policy == FULL else f"{self.codec} {self.policy}"

    @property
    def key(self) -> tuple[str, str]:
        """What results under it are found by: names, or what stands in the file that a name points to."""
        return meaning(self.codec), self.policy

    @property
    def codecs(self) -> tuple[str, ...]:
        """The codec of K and V, or each of the two."""
        return tuple(re.findall(r"[kv]=(\w+)", self.codec)) or (self.codec,)

    @property
    def options(self) -> dict[str, Any]:
        """As options of an engine."""
        return {"kv_cache_dtype": self.codec, "policy": self.policy}

    @contextmanager
    def engine(self, llm: LLM, **sizes: Any) -> Iterator[Engine]:
        """An engine with the method's pages over the model of `llm`; sizes: further options. Closed at the end."""
        made = assemble(
            llm.model, replace(llm.config, **self.options, **sizes), llm.backend, instruction=llm.instruction
        )
        try:
            yield made
        finally:
            made.close()


USUAL = ("int8", "k=int6,v=int4", "k=int5,v=int3")
"""Codecs that are measured if none are named: the best of so many bits that need no larger pages."""

REFERENCE = Method("f32")
FLOOR = Method("f16")
"""What rounding to half precision costs: nobody asks more of a method."""


def methods(codecs: Sequence[str], policies: Sequence[str] = (FULL,)) -> tuple[Method, ...]:
    """Every codec with every policy, after float32 and float16. Raises UsageError for a name that is not known."""
    given = []
    for codec, policy in ((codec, policy) for policy in policies for codec in codecs):
        config = EngineConfig.from_options(Method(codec, policy).options)
        if config.kv_cache_dtype == "auto":
            raise UsageError("kv_cache_dtype auto is whatever the weights are: name the codecs to measure")
        given.append(Method(config.kv_cache_dtype, config.policy))
    return tuple(dict.fromkeys((REFERENCE, FLOOR, *given)))


def names(text: str) -> list[str]:
    """Names separated by commas. Those inside `k=int5,v=int4` and `evict:0.5,by=kvzip` separate none."""
    return [name.strip() for name in re.split(r",(?!\s*(?:v|by)=)", text)]
