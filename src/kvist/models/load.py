"""Load a model: open its file, read its config, and lay its weights out as the decoder wants them.

Float weights of the wanted type and of widths that are multiples of 16 stay where they are: views of the memory-mapped
file. Everything else (block-quantised, another type, transposed, interleaved, of odd width) becomes an array of its
own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from kvist.cache.codec import codec
from kvist.errors import ModelFileError, unknown_name
from kvist.kernels.program import Backend, Floats, FloatType, Packed, Weight
from kvist.memory import aligned_size, map_memory
from kvist.models.config import WEIGHT_TYPES, ModelConfig
from kvist.models.families import Source
from kvist.models.read_config import config_from_gguf, config_from_hf, family_of, read_json
from kvist.models.shapes import Shape, expected_shape, in_place
from kvist.models.weights import GgufFile, TensorFile, open_model
from kvist.models.weights.tensors import BLOCK_TYPES

Array = npt.NDArray[Any]
Progress = Callable[[int, int], None]
HELD_AS = {"f32": np.float32, "f16": np.float16, "bf16": np.uint16}
JOBS_A_ROUND = 32  # matrices unpacked between two reports of progress


@dataclass(eq=False)
class Model:
    """A loaded model: weights by role (see `families`).

    `weights` is the type its matrices are held in; `metadata` a GGUF file's, where it came from one.
    """

    config: ModelConfig
    matrices: dict[str, Weight]
    vectors: dict[str, Floats]
    rope_divisors: Floats | None
    weights: FloatType
    metadata: Mapping[str, object] | None

    @property
    def weights_bytes(self) -> int:
        """Bytes of all weights as they are held, each array once."""
        arrays = [w.data for w in self.matrices.values()] + list(self.vectors.values())
        return sum({a.ctypes.data: a.nbytes for a in arrays}.values())


def load_model(path: Path, backend: Backend, weights: str = "auto", progress: Progress | None = None) -> Model:
    """Load the model at `path` (a folder or a file).

    weights: f32, f16 or bf16, or auto: a float file's own type, f16 for block-quantised weights. progress(done, total)
    counts matrices. Raises ModelFileError (damaged, a tensor missing or misshapen, NaN), UnsupportedModelError
    (architecture, type).
    """
    if weights not in WEIGHT_TYPES:
        raise unknown_name("weight type", weights, WEIGHT_TYPES)
    file = open_model(path)
    try:
        config, sources, metadata = _describe(file, path)
        found = _locate(file, config, sources)
        types = {file.info(name).dtype for role, (name, _) in found.items() if len(expected_shape(config, role)) == 2}
        target = weights if weights != "auto" else _own_type(types)
        arrays = _read_matrices(file, config, found, target, backend, progress)
        matrices: dict[str, Weight] = {}
        vectors: dict[str, Floats] = {}
        for role, (name, source) in found.items():
            if role in arrays:
                matrices[role] = Weight(in_place(config, role, source, arrays[role]), cast(FloatType, target))
            else:
                vectors[role] = in_place(config, role, source, _as_float32(file, name))
        matrices.setdefault("head", matrices["embed"])
        _check_finite(matrices, vectors, found, backend)
        return Model(config, matrices, vectors, _divisors(file, config), cast(FloatType, target), metadata)
    finally:
        file.close()  # views that are in use keep their part of the file mapped


def _describe(file: TensorFile, path: Path) -> tuple[ModelConfig, Mapping[str, Source], Mapping[str, object] | None]:
    """Config, the family's table of names, GGUF metadata."""
    if isinstance(file, GgufFile):
        tied = "output.weight" not in file.names()
        family, config = config_from_gguf(file.metadata, _rows_of(file, "token_embd.weight"), tied)
        return config, family.gguf, file.metadata
    raw = read_json((path if path.is_dir() else path.parent) / "config.json")
    family = family_of(raw)
    family, config = config_from_hf(raw, _rows_of(file, family.hf["embed"].name))
    if config.tie_embeddings:
        return config, {role: source for role, source in family.hf.items() if role != "head"}, None
    return config, family.hf, None


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
        for layer in layers:
            role = short if layer is None else f"layers.{layer}.{short}"
            full = source.name.format(layer=layer)
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


def _check_shape(file: TensorFile, config: ModelConfig, role: str, name: str, source: Source) -> None:
    shape: Shape = expected_shape(config, role, fused=source.rows != "all")
    shape = shape[::-1] if source.transposed else shape
    given = file.info(name).shape
    if given != shape:
        raise ModelFileError(f"{file.path.name}: tensor {name} is {given}, the config says {shape}: get the file again")


def _own_type(types: set[str]) -> str:
    """The type to hold a file's matrices in: its own if it has one float type, else the most exact it needs."""
    if types & set(BLOCK_TYPES):
        return "f16"
    return types.pop() if len(types) == 1 else "f32"


def _read_matrices(
    file: TensorFile,
    config: ModelConfig,
    found: Mapping[str, tuple[str, Source]],
    target: str,
    backend: Backend,
    progress: Progress | None,
) -> dict[str, Array]:
    """Role -> matrix as its file has it, in the target type.

    Block-quantised ones are unpacked by all threads together.
    """
    roles = [role for role in found if len(expected_shape(config, role)) == 2]
    by_name: dict[str, Array] = {}
    jobs: list[tuple[Packed, Weight]] = []
    names = list(dict.fromkeys(found[role][0] for role in roles))
    room = _room([file.info(name).shape for name in names if file.info(name).dtype in BLOCK_TYPES], target)
    for done, name in enumerate(names, start=1):
        info, raw = file.info(name), file.raw(name)
        if info.dtype in BLOCK_TYPES:
            by_name[name] = next(room)
            jobs.append(
                (Packed(raw, info.dtype, *BLOCK_TYPES[info.dtype]), Weight(by_name[name], cast(FloatType, target)))
            )
        else:
            by_name[name] = raw if info.dtype == target else codec(target).encode(codec(info.dtype).decode(raw))
        if jobs and (len(jobs) == JOBS_A_ROUND or done == len(names)):
            backend.unpack(jobs)
            jobs = []
        if progress:
            progress(done, len(names))
    return {role: by_name[found[role][0]] for role in roles}


def _room(shapes: Sequence[Shape], target: str) -> Iterator[Array]:
    """Matrices of these shapes, side by side in one block of large memory, in the order they are read in a step."""
    dtype = np.dtype(HELD_AS[target])
    sizes = [aligned_size(math.prod(shape) * dtype.itemsize) for shape in shapes]
    memory = map_memory(sum(sizes)) if shapes else b""
    offset = 0
    for shape, size in zip(shapes, sizes, strict=True):
        yield np.frombuffer(memory, dtype, math.prod(shape), offset).reshape(shape)
        offset += size


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
