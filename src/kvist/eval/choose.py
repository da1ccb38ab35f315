"""Choose a codec for each layer's K and V: the least KL divergence that so many bits a number can buy.

Every place has options, bytes against cost. Those on the lower convex hull of its points are steps, each with a gain
for every byte, which falls from step to step. All places begin with their smallest option; then the best step of all
that still fits is taken, again and again. But for the last few bytes of the budget this is the best sum there is: it
minimises cost + lambda x bytes, lambda being the gain of the last step. ::

    cost │ x int3                 budget: bits x numbers / 8, with scales and offsets, as pages have them
         │   \\  x lm4 (above the hull: never taken)
         │    x int4
         │      `--.__ x int5 ..._______ x int8 ____ x floats
         └────────────────────────────────────────── bytes
"""

from __future__ import annotations

import heapq
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kvist.cache.codec import CODECS, any_codec, codec
from kvist.cache.codec.choice import AUTO, write_codecs
from kvist.cache.layout import LayerSpec, PageLayout
from kvist.errors import UsageError
from kvist.eval.method import FLOOR, REFERENCE, Method
from kvist.eval.plan import Plan
from kvist.eval.sensitivity import Place, Sensitivity, measure, usable
from kvist.eval.steps import Progress
from kvist.eval.store import Store
from kvist.eval.text import Document, digest, documents
from kvist.kernels.program import Floats
from kvist.llm import LLM


@dataclass(frozen=True, slots=True)
class Wish:
    """What is asked for: bits a number, codecs to choose from (floats among them are no choice), where to write it."""

    bits: float
    names: tuple[str, ...]
    file: Path

    @classmethod
    def parse(cls, text: str, file: Path, methods: Sequence[Method]) -> Wish:
        """From a budget as ``4.5bits`` or ``4.5``. Raises UsageError for what cannot be meant."""
        match = re.fullmatch(r"(\d{1,2}(?:\.\d{1,4})?)\s*(?:bits?)?", text.strip(), re.ASCII)
        if match is None or not 1 <= float(match[1]) <= 32:
            raise UsageError(f"--choose {text[:40]!r}: give bits a number from 1 to 32, as in --choose 4.5bits")
        if file.is_dir() or not file.absolute().parent.is_dir():
            raise UsageError(f"--output {file}: give a file in a folder that exists")
        names = tuple(method.codec for method in methods)
        for name in names:
            if name not in CODECS:
                raise UsageError(f"--choose takes single codecs to choose from, and {name} is none: leave it out")
        return cls(float(match[1]), names, file)


QUICK, FULL = (4, 320), (24, 1024)
"""Documents that layers are measured on, and positions of each."""


@dataclass(frozen=True, slots=True)
class Option:
    """A codec in a place: bytes of a page's part, and what it costs, in nats."""

    codec: str
    bytes: int
    cost: float


@dataclass(frozen=True, slots=True)
class Choice:
    """An option for each place; bits: of a number, over all layers; cost: the sum of the options' costs."""

    options: Mapping[Place, Option]
    bits: float
    cost: float


class Shelf:
    """The options of all places, and what pages hold besides."""

    def __init__(self, llm: LLM, names: Sequence[str], found: Sensitivity) -> None:
        config, floats = llm.model.config, codec(llm.model.float_type)
        plain = LayerSpec(config.num_kv_heads, config.stored_head_dim)
        size = llm.config.page_size

        def part(side: str, name: str) -> int:
            """Bytes of K, or V, of one layer in a page."""
            chosen = floats if name == AUTO else any_codec(name)
            spec = replace(plain, k=chosen, v=floats) if side == "k" else replace(plain, k=floats, v=chosen)
            return PageLayout((spec,), size, floats).page_bytes - PageLayout((plain,), size, floats).page_bytes // 2

        bytes_of = {(side, name): part(side, name) for side in "kv" for name in (*names, AUTO)}
        self.options = {
            place: [
                *(Option(name, bytes_of[place[1], name], found.cost(place, name)) for name in names),
                Option(AUTO, bytes_of[place[1], AUTO], 0.0),
            ]
            for place in found.divergence
        }
        sides = 2 * config.num_layers
        self._numbers = sides * plain.kv_heads * plain.head_dim * size
        self._fixed = (sides - len(self.options)) * bytes_of["k", AUTO]  # layers that stay floats

    def choose(self, bits: float) -> Choice:
        """The best options for a budget. Raises UsageError for one that is too small."""
        hulls = {place: hull(options) for place, options in self.options.items()}
        least, most = (self._bits(sum(found[i].bytes for found in hulls.values())) for i in (0, -1))
        if not hulls:
            raise UsageError("no layer of this model is packed: its windows are small, or all layers are skipped")
        if bits < least:
            raise UsageError(f"{bits:g} bits a number are too few: with the smallest codecs it is {least:.3f}")
        room = int(bits * self._numbers / 8) - self._fixed
        taken = climb(list(hulls.values()), room) if bits < most else [found[-1] for found in hulls.values()]
        return self.made(dict(zip(hulls, taken, strict=True)))

    def uniform(self, k: str, v: str) -> Choice:
        """The same codecs in all places."""
        wanted = {"k": k, "v": v}
        return self.made({
            place: next(option for option in options if option.codec == wanted[place[1]])
            for place, options in self.options.items()
        })  # fmt: skip

    def made(self, options: Mapping[Place, Option]) -> Choice:
        """What options add up to."""
        size, cost = sum(option.bytes for option in options.values()), sum(o.cost for o in options.values())
        return Choice(options, self._bits(size), cost)

    def _bits(self, size: int) -> float:
        return 8 * (size + self._fixed) / self._numbers


def hull(options: Sequence[Option]) -> list[Option]:
    """The options on the lower convex hull, the smallest first: each costs less, and a byte gains ever less."""
    found: list[Option] = []
    for option in sorted(options, key=lambda option: (option.bytes, option.cost)):
        if found and option.cost >= found[-1].cost:
            continue
        while len(found) > 1 and _gain(found[-2], found[-1]) <= _gain(found[-1], option):
            found.pop()
        found.append(option)
    return found


def climb(hulls: Sequence[Sequence[Option]], room: int) -> list[Option]:
    """From the smallest options up, the best step first, while there is room."""
    at, left = [0] * len(hulls), room - sum(found[0].bytes for found in hulls)
    steps = [(-_gain(*found[:2]), i) for i, found in enumerate(hulls) if len(found) > 1]
    heapq.heapify(steps)
    while steps:
        _, i = heapq.heappop(steps)
        step = hulls[i][at[i] + 1].bytes - hulls[i][at[i]].bytes
        if step > left:
            continue  # steps of other places may be smaller
        at[i], left = at[i] + 1, left - step
        if at[i] + 1 < len(hulls[i]):
            heapq.heappush(steps, (-_gain(*hulls[i][at[i] : at[i] + 2]), i))
    return [found[i] for found, i in zip(hulls, at, strict=True)]


def _gain(small: Option, large: Option) -> float:
    """Cost that each byte more takes away."""
    return (small.cost - large.cost) / (large.bytes - small.bytes)


def rivals(shelf: Shelf, names: Sequence[str], bits: float, count: int = 3) -> list[str]:
    """The codecs, the same in all layers, that come closest to a budget from below, and the pair that costs least."""
    uniform = {(k, v): shelf.uniform(k, v) for k in names for v in names}
    fitting = {pair: made for pair, made in uniform.items() if made.bits <= bits + 1e-9}
    alike = sorted((k for k, v in fitting if k == v), key=lambda name: -fitting[name, name].bits)[:count]
    best = [f"k={k},v={v}" for k, v in sorted(fitting, key=lambda pair: fitting[pair].cost)[:1] if k != v]
    return [*alike, *best]


def texts(llm: LLM, plan: Plan, count: int, tokens: int) -> list[Document]:
    """Documents to measure layers on, none of which the plan evaluates. Raises UsageError where there is none."""
    encode = llm.tokenizer.encode
    evaluated = {(text.domain, text.name) for text in documents(encode, plan.documents, plan.tokens)}
    tokens = min(tokens, llm.engine.limits.max_model_len)
    found = documents(encode, plan.documents + count, tokens)
    others = [text for text in found if (text.domain, text.name) not in evaluated]
    if not others:
        raise UsageError("all text of this machine is evaluated and none is left to choose by: give fewer --documents")
    return others[:count]


def compared(
    llm: LLM, path: Path, plan: Plan, store: Store, report: Progress, model: str, wish: Wish, *, quick: bool
) -> tuple[tuple[Method, ...], dict[str, Any]]:
    """Measure the layers, choose, write the file: the methods to compare, the choice last, and what to tell of it.

    path: where the model's files are; model: what it is called.
    """
    names, chosen_by = usable(llm, wish.names), texts(llm, plan, *(QUICK if quick else FULL))
    found = measure(llm, path, names, chosen_by, store, report)
    shelf = Shelf(llm, names, found)
    choice = shelf.choose(wish.bits)
    told = {
        "model": model, "weights": llm.model.weights, "page_size": llm.config.page_size, "budget_bits": wish.bits,
        "probe": found.probe, "predicted_kld": choice.cost, "text": digest(chosen_by)[:16],
    }  # fmt: skip
    write(wish.file, choice, llm.model.config.num_layers, found.means, told)
    others = [Method(name) for name in rivals(shelf, names, wish.bits)]
    sides = {side: Counter(o.codec for place, o in choice.options.items() if place[1] == side) for side in "kv"}
    told |= {"bits_per_value": choice.bits, "file": str(wish.file), "layers": sides}
    return (REFERENCE, FLOOR, *others, Method(f"@{wish.file}")), told


def write(
    path: Path, choice: Choice, layers: int, means: Mapping[int, Floats], made_from: Mapping[str, Any]
) -> None:  # fmt: skip
    """The file that ``--kv-cache-dtype @FILE`` takes; made_from: what it says of itself besides."""

    def name(layer: int, side: str) -> str:
        return choice.options[layer, side].codec if (layer, side) in choice.options else AUTO

    pairs = [(name(layer, "k"), name(layer, "v")) for layer in range(layers)]
    told = {"made_by": "kvist eval --choose", **made_from, "bits_per_value": choice.bits}
    write_codecs(path, pairs, means, told)
