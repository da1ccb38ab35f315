"""How much a model minds that pages are packed: layer by layer, K and V apart.

To measure every codec in every layer would take hours. A small error of K or V moves predictions by a KL divergence
that grows with its square. So one codec, the *probe*, is measured in each place, with floats in all others; another
codec's cost there is the probe's, times the ratio of the squared errors that the two make on the same numbers. ::

    cost(layer, side, codec) = KLD(probe there alone) x error(layer, side, codec) / error(layer, side, probe)

Keys are packed without their mean (see `key_means`), in the probes and in the errors. The sum of the costs of a choice
is a prediction; the choice itself is measured afterwards, on other documents.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import cycle
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import numpy.typing as npt

from kvist.cache.codec import PACKED, Codec, Packed, any_codec, codec
from kvist.cache.codec.choice import AUTO, write_codecs
from kvist.cache.codec.packed import signs
from kvist.cache.layout import LayerSpec, PageLayout
from kvist.cache.pool import PagePool
from kvist.errors import UsageError
from kvist.eval.evaluate import identity
from kvist.eval.force import CHUNK, Reading, force
from kvist.eval.key_means import key_means
from kvist.eval.method import Method
from kvist.eval.steps import Progress
from kvist.eval.store import Store, key_of
from kvist.eval.text import Document, digest
from kvist.kernels.program import Floats
from kvist.layers import layer_specs
from kvist.llm import LLM

AT_ONCE = 10
"""Probes that share the reference's work."""

PAGES = 8
"""Full pages of which numbers errors are taken."""

Place = tuple[int, str]
"""A layer and a side: "k" or "v"."""


@dataclass(frozen=True, slots=True)
class Sensitivity:
    """Of each place what the probe costs there alone, mean KL divergence in nats, and each codec's squared error.

    means: the mean key of each layer, where keys are packed without it.
    """

    probe: str
    divergence: Mapping[Place, float]
    errors: Mapping[Place, Mapping[str, float]]
    means: Mapping[int, Floats]

    def cost(self, place: Place, name: str) -> float:
        """What a codec costs in a place; nothing where it makes no error."""
        errors = self.errors[place]
        return self.divergence[place] * errors[name] / errors[self.probe] if errors[name] else 0.0


def usable(llm: LLM, names: Sequence[str] = PACKED) -> list[str]:
    """The codecs that go with the model's heads and the page size. Raises UsageError where none does."""
    found, refusals, config = [], [], llm.model.config
    for name in names:
        chosen = any_codec(name)
        if not isinstance(chosen, Packed):
            continue
        try:
            chosen.check(llm.config.page_size, config.stored_head_dim)
            found.append(name)
        except UsageError as error:
            refusals.append(str(error))
    if not found:
        raise UsageError(f"there is no codec to choose: {'; '.join(refusals) or 'name some that are not floats'}")
    return found


def packable(llm: LLM, name: str) -> list[int]:
    """The layers that a codec would be used in."""
    specs = layer_specs(llm.model.config, replace(llm.config, kv_cache_dtype=name), codec(llm.model.float_type))
    return [layer for layer, spec in enumerate(specs) if spec.packed]


def measure(
    llm: LLM, path: Path, names: Sequence[str], texts: Sequence[Document], store: Store, report: Progress
) -> Sensitivity:
    """Measure each packable layer and side. What the store has is not measured again; the rest goes into it."""
    probe = min(names, key=lambda name: (abs(_bits(name) - 4), name))
    layers = packable(llm, probe)
    places = [(layer, side) for layer in layers for side in ("k", "v")]
    common = (identity(llm, path), digest(texts), llm.config.kv_cache_skip_layers)
    key = key_of("means", common, layers)
    if store.get(key) is None:
        report("measuring mean keys", 0, len(texts))
        store.put(key, [[layer, mean.tolist()] for layer, mean in key_means(llm, layers, texts).items()])
    means = {layer: np.array(mean, np.float32) for layer, mean in store.get(key)}
    keys = {place: key_of("probe", common, probe, place) for place in places}
    missing = [place for place in places if store.get(keys[place]) is None]
    for first in range(0, len(missing), AT_ONCE):
        report("measuring layers", len(places) - len(missing) + first, len(places))
        some = missing[first : first + AT_ONCE]
        for place, found in zip(some, _probed(llm, probe, some, texts, means), strict=True):
            store.put(keys[place], found)
    key = key_of("errors", common, list(names))
    if store.get(key) is None:
        store.put(key, list(_errors(llm, names, places, texts[0], means, report)))
    errors = dict(zip(places, store.get(key), strict=True))
    return Sensitivity(probe, {place: store.get(keys[place]) for place in places}, errors, means)


def _bits(name: str) -> int:
    found = any_codec(name)
    assert isinstance(found, Packed)
    return found.bits


def _probed(
    llm: LLM, probe: str, places: Sequence[Place], texts: Sequence[Document], means: Mapping[int, Floats]
) -> list[float]:
    """The mean divergence from float pages with one place packed, for each of the places."""
    floats, count = llm.model.float_type, llm.model.config.num_layers
    sizes = {
        "max_num_seqs": len(texts), "max_num_batched_tokens": CHUNK * len(texts), "enable_prefix_caching": False,
        "max_model_len": max(text.positions for text in texts), "kv_cache_skip_layers": (),
    }  # fmt: skip
    with ExitStack() as stack, TemporaryDirectory() as folder:
        engines = []
        for layer, side in places:
            pairs, file = [(AUTO, AUTO)] * count, Path(folder, f"{layer}{side}.json")
            pairs[layer] = (probe, AUTO) if side == "k" else (AUTO, probe)
            write_codecs(file, pairs, means, {})
            engines.append(stack.enter_context(Method(f"@{file}").engine(llm, **sizes)))
        plain = stack.enter_context(Method(floats).engine(llm, **sizes))
        found = force(plain, engines, texts, stride=CHUNK)
    return [float(np.concatenate([one.divergence for one in scores]).mean(dtype=np.float64)) for scores in found]


def _errors(
    llm: LLM, names: Sequence[str], places: Sequence[Place], text: Document, means: Mapping[int, Floats],
    report: Progress,
) -> Sequence[Mapping[str, float]]:  # fmt: skip
    """Each codec's mean squared error in each place, on full pages of one document."""
    size = llm.config.page_size
    pages = min(PAGES, text.positions // size)
    sizes = {"max_num_seqs": size, "max_num_batched_tokens": size, "enable_prefix_caching": False}
    found: list[dict[str, float]] = []
    with Method(llm.model.float_type).engine(llm, **sizes, max_model_len=pages * size) as engine:
        reading = Reading(engine, [text])
        for i in range(pages):
            reading.run([0], i * size, (i + 1) * size)
        (table,) = engine.manager.tables
        for number, (layer, side) in enumerate(places):
            report("measuring errors", number, len(places))
            group = next(i for i, g in enumerate(engine.manager.groups) if g.layout.layers[layer] is not None)
            pool, held = engine.manager.ledgers[group].pool, [page for page in table.groups[group] if page >= 0]
            heads = range(pool.layout.spec(layer).kv_heads)
            numbers = [pool.read(page, layer, head)[side == "v"] for page in held for head in heads]
            if side == "k" and layer in means:
                numbers = [k - mean for k, mean in zip(numbers, cycle(means[layer].reshape(len(heads), -1)))]
            found.append({name: _squared(any_codec(name), numbers, size, keys=side == "k") for name in names})
        reading.close(0)
    return found


def _squared(chosen: object, pages: Sequence[npt.NDArray[np.float32]], size: int, *, keys: bool) -> float:
    """Mean squared error of a codec on pages of one head's K or V, (page_size, head_dim) each."""
    assert isinstance(chosen, Packed)
    dims = pages[0].shape[1]
    exact: Codec = codec("f32")
    spec = LayerSpec(1, dims, chosen if keys else exact, exact if keys else chosen)
    pool, turn, total = PagePool(PageLayout((spec,), size, exact), 1), rotation(dims, chosen), 0.0
    for numbers in pages:
        turned = numbers @ turn
        pool.pack(0, 0, 0, turned, turned)
        total += float(np.square(pool.read(0, 0, 0)[not keys] - turned, dtype=np.float64).mean())
    pool.close()
    return total / len(pages)


def rotation(dims: int, chosen: Packed) -> npt.NDArray[np.float32]:
    """The matrix (dims, dims) that a codec turns a row of numbers by; it keeps lengths, and so errors."""
    if not chosen.turns(dims):
        return np.eye(dims, dtype=np.float32)
    turn = np.ones((1, 1), np.float32)
    while len(turn) < dims:
        turn = np.block([[turn, turn], [turn, -turn]])
    return np.asarray(signs(dims)[:, None] * turn / np.sqrt(np.float32(dims)), np.float32)
