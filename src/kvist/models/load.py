"""Load a model: open its file, read its config, and lay its weights out as the decoder wants them.

Weights of the wanted type and of widths that are multiples of 16 stay where they are: views of the memory-mapped file.
Everything else (another type, transposed, interleaved, of odd width) becomes an array of its own.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import cast

import numpy as np

from kvist.cache.codec import codec
from kvist.errors import ModelFileError, UnsupportedModelError, unknown_name
from kvist.kernels.program import BLOCK_TYPES, Backend, Floats, FloatType, Weight, WeightType
from kvist.models.config import WEIGHT_TYPES, ModelConfig
from kvist.models.families import Source
from kvist.models.read_config import config_from_gguf, config_from_hf, family_of, read_json
from kvist.models.read_rope import longrope_from_gguf
from kvist.models.shapes import Shape, expected_shape, in_place
from kvist.models.weight_reader import HELD_AS, Progress, WeightReader, resolve_type
from kvist.models.weights import GgufFile, TensorFile, open_model

NO_WEIGHTS = (
    ".inv_freq", ".attn.bias", ".attn.masked_bias", ".attention.bias", ".attention.masked_bias", "rope_freqs.weight",
    "rope_factors_long.weight", "rope_factors_short.weight", ".attn_rot_embd.weight",
)  # fmt: skip
"""Tensors of old files that hold masks and angles, and those that are read by their own name."""

TIED = ("lm_head.weight", "embed_out.weight")
"""Heads that a file may hold a second time beside the embedding."""


@dataclass(eq=False)
class Model:
    """A loaded model: weights by role (see `families`).

    `weights` says what its matrices are held in (see `load_model`); `metadata` a GGUF file's, where it came from one.
    """

    config: ModelConfig
    matrices: dict[str, Weight]
    vectors: dict[str, Floats]
    rope_divisors: Floats | None
    weights: str
    metadata: Mapping[str, object] | None

    @property
    def float_type(self) -> FloatType:
        """The type its pages have if nobody asks for another: the weights' own, f16 beside quantised ones."""
        return cast(FloatType, self.weights) if self.weights in HELD_AS else "f16"

    @property
    def weights_bytes(self) -> int:
        """Bytes of all weights as they are held, each array once."""
        arrays = [w.data for w in self.matrices.values()] + list(self.vectors.values())
        return sum({a.ctypes.data: a.nbytes for a in arrays}.values())


def load_model(path: Path, backend: Backend, weights: str = "auto", progress: Progress | None = None) -> Model:
    """Load the model at `path` (a folder or a file).

    weights: f32, f16, bf16; packed: block-quantised ones as the file has them; int8: blocks of 32 numbers with a scale,
    made from a float file; auto: a file's own. progress(done, total) counts matrices. Raises ModelFileError (damaged,
    a tensor missing or misshapen, NaN), UnsupportedModelError (architecture, type), UsageError (a type that does not
    fit the file).
    """
    if weights not in WEIGHT_TYPES:
        raise unknown_name("weight type", weights, WEIGHT_TYPES)
    file = open_model(path)
    try:
        config, sources, metadata = _describe(file, path)
        found = _locate(file, config, sources)
        _check_all_known(file, config, sources)
        types = {file.info(name).dtype for role, (name, _) in found.items() if len(expected_shape(config, role)) == 2}
        target = resolve_type(weights, types)
        backend.prepare(cast("set[WeightType]", types | ({target} & set(HELD_AS))))
        reader = WeightReader(file, config, target, backend)
        roles = [role for role in found if len(expected_shape(config, role)) == 2]
        matrices = reader.read({role: found[role] for role in roles}, progress)
        vectors = {
            role: in_place(config, role, source, _as_float32(file, name))
            for role, (name, source) in found.items()
            if role not in matrices
        }
        matrices.setdefault("head", matrices["embed"])
        _check_experts(file, config, matrices)
        _check_finite(matrices, vectors, found, backend)
        return Model(config, matrices, vectors, _divisors(file, config), target, metadata)
    finally:
        file.close()  # views that are in use keep their part of the file mapped


def _describe(file: TensorFile, path: Path) -> tuple[ModelConfig, Mapping[str, Source], Mapping[str, object] | None]:
    """Config, the family's table of names, GGUF metadata."""
    if isinstance(file, GgufFile):
        tied = "output.weight" not in file.names()
        family, config = config_from_gguf(file.metadata, _rows_of(file, "token_embd.weight"), tied)
        if "rope_factors_long.weight" in file.names():
            short, long = (_as_float32(file, f"rope_factors_{kind}.weight").tolist() for kind in ("short", "long"))
            config = replace(config, rope_scaling=longrope_from_gguf(file.metadata, short, long))
        return config, _needed(config, family.gguf), file.metadata
    raw = read_json((path if path.is_dir() else path.parent) / "config.json")
    family = family_of(raw)
    family, config = config_from_hf(raw, _rows_of(file, family.hf["embed"].name))
    return config, _needed(config, family.hf), None


def _needed(config: ModelConfig, sources: Mapping[str, Source]) -> Mapping[str, Source]:
    """The roles that this model has, of all of its family's."""
    missing = {"head"} if config.tie_embeddings else set()
    missing |= {"mlp_norm", "mlp_norm.bias"} if config.shared_norm else set()
    return {role: source for role, source in sources.items() if role not in missing}


def _named(file: TensorFile, name: str) -> str | None:
    """The name as the file has it: some files leave the outermost prefix out."""
    present = file.names()
    shorter = name.partition(".")[2]
    return name if name in present else shorter if shorter in present else None


def _rows_of(file: TensorFile, name: str) -> int:
    found = _named(file, name)
    if found is None:
        raise ModelFileError(
            f"{file.path.name} has no tensor {name}: it is not a whole model of this architecture; get it again"
        )
    return file.info(found).rows


def _locate(file: TensorFile, config: ModelConfig, sources: Mapping[str, Source]) -> dict[str, tuple[str, Source]]:
    """Role -> (tensor name, source) of every weight the file has.

    A missing one that is needed, or a misshapen one, is an error.
    """
    present = set(file.names())
    found: dict[str, tuple[str, Source]] = {}
    for short, source in sources.items():
        layers = range(config.num_layers) if "{layer}" in source.name else [None]
        experts = range(config.experts) if "{expert}" in short else [None]
        for layer, expert in product(layers, experts):
            role = (short if layer is None else f"layers.{layer}.{short}").format(expert=expert)
            full = source.name.format(layer=layer, expert=expert)
            name = full if full in present else full.partition(".")[2]
            if name not in present:
                if short.endswith(".bias") or (short == "head" and config.tie_embeddings):
                    continue
                raise ModelFileError(
                    f"{file.path.name} has no tensor {full}: it is truncated or of another architecture; get it again"
                )
            _check_shape(file, config, role, name, source)
            found[role] = (name, source)
    return found


def _check_all_known(file: TensorFile, config: ModelConfig, sources: Mapping[str, Source]) -> None:
    """Refuse a file with a weight that no role names: without it the model would be another one, in silence.

    Layers beyond those the config counts are left alone.
    """
    known = {source.name for source in sources.values()}
    known |= {name.partition(".")[2] for name in known}  # as `_named`
    rest = [name for name in file.names() if _pattern(name) not in known]
    rest = [name for name in rest if not name.endswith((*NO_WEIGHTS, *(TIED if config.tie_embeddings else ())))]
    if rest:
        raise UnsupportedModelError(
            f"{file.path.name} has tensors that kvist has no use for in a model of family {config.family}, such as "
            f"{rest[0]:.80} ({len(rest)} in all): it is a variant that kvist does not run"
        )


def _check_experts(file: TensorFile, config: ModelConfig, matrices: Mapping[str, Weight]) -> None:
    """An expert's gate and up run side by side, as one type."""
    for layer in range(config.num_layers if config.experts else 0):
        gate, up = (matrices[f"layers.{layer}.expert.0.{name}"].dtype for name in ("gate", "up"))
        if gate != up:
            raise UnsupportedModelError(
                f"{file.path.name}: the experts of layer {layer} have a gate of type {gate} and an up of type {up}, "
                "which kvist does not run packed: give --weights f16"
            )


def _pattern(name: str) -> str:
    """A tensor's name as a family's table has it."""
    return re.sub(r"\.\d+\.", ".{expert}.", re.sub(r"\.\d+\.", ".{layer}.", name, count=1), count=1)


def _check_shape(file: TensorFile, config: ModelConfig, role: str, name: str, source: Source) -> None:
    shape: Shape = expected_shape(config, role, source.rows)
    shape = shape[::-1] if source.transposed else shape
    shape = (config.experts, *shape) if source.stacked else shape
    given = file.info(name).shape
    if given != shape:
        raise ModelFileError(f"{file.path.name}: tensor {name} is {given}, the config says {shape}: get the file again")


def _as_float32(file: TensorFile, name: str) -> Floats:
    """A vector as an array of its own."""
    info = file.info(name)
    if info.dtype in BLOCK_TYPES:
        raise ModelFileError(f"{file.path.name}: vector {name} is of type {info.dtype}: get the file again")
    return np.array(codec(info.dtype).decode(file.raw(name)), np.float32)


def _check_finite(
    matrices: Mapping[str, Weight],
    vectors: Mapping[str, Floats],
    found: Mapping[str, tuple[str, Source]],
    backend: Backend,
) -> None:
    roles = list(matrices)
    bad = [roles[i] for i in backend.find_nonfinite([matrices[role] for role in roles])]
    bad += [role for role, vector in vectors.items() if not np.isfinite(vector).all()]
    if bad:
        name = found[bad[0]][0] if bad[0] in found else bad[0]
        raise ModelFileError(
            f"tensor {name} holds NaN or infinity ({len(bad)} such tensors): the file is damaged, get it again"
        )


def _divisors(file: TensorFile, config: ModelConfig) -> Floats | None:
    """GGUF's own table of frequency divisors, one per rotary pair."""
    if "rope_freqs.weight" not in file.names() or config.positions != "rotary":
        return None
    divisors = _as_float32(file, "rope_freqs.weight")
    if divisors.shape != (config.rotary_dim // 2,) or not (np.isfinite(divisors) & (divisors > 0)).all():
        raise ModelFileError(f"{file.path.name}: rope_freqs.weight is damaged: get the file again")
    return divisors
