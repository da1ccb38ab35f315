"""Read a file's matrices in the type they are wanted in."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from kvist.cache.codec import codec
from kvist.errors import UsageError
from kvist.kernels.program import BLOCK_TYPES, Backend, FloatType, Weight, WeightType
from kvist.memory import allocate
from kvist.models.config import LANES, ModelConfig
from kvist.models.families import Source
from kvist.models.quantize import quantize_q8_0
from kvist.models.shapes import in_place, only_rows_change
from kvist.models.weights import TensorFile

Array = npt.NDArray[Any]
Progress = Callable[[int, int], None]
Place = tuple[str, Source]  # a tensor's name, and how it becomes a role's matrix

HELD_AS = {"f32": np.float32, "f16": np.float16, "bf16": np.uint16}
JOBS_A_ROUND = 32  # matrices converted between two reports of progress


def resolve_type(wanted: str, types: set[str]) -> str:
    """What `auto` means for a file with matrices of these types; refuses what does not fit them."""
    blocks = sorted(types & set(BLOCK_TYPES))
    if wanted == "packed" and not blocks:
        raise UsageError(
            f"weights=packed runs block-quantised weights as a file has them, and this one has "
            f"{', '.join(sorted(types))}: give int8 to quantise it, or auto"
        )
    if wanted == "int8" and blocks:
        raise UsageError(
            f"weights=int8 quantises a float file, and this one is quantised already ({', '.join(blocks)}): give packed"
        )
    if wanted != "auto":
        return wanted
    if blocks:
        return "packed"
    return next(iter(types)) if len(types) == 1 else "f32"


class WeightReader:
    """Reads the matrices of one file for one model. target: as `resolve_type` gives it."""

    def __init__(self, file: TensorFile, config: ModelConfig, target: str, backend: Backend) -> None:
        self._file, self._config, self._target, self._backend = file, config, target, backend

    def read(self, places: Mapping[str, Place], progress: Progress | None) -> dict[str, Weight]:
        """Role -> matrix as the decoder wants it. Conversions are done by all threads together, some at a time."""
        kinds = {role: self._kind(role, place) for role, place in places.items()}
        tensors = list(dict.fromkeys((places[role][0], kind) for role, kind in kinds.items()))
        read: dict[tuple[str, WeightType], Weight] = {}
        jobs: list[tuple[Weight, Weight]] = []
        room = self._room([key for key in tensors if self._converts(*key)])
        for done, key in enumerate(tensors, start=1):
            raw = self._file.raw(key[0])
            source = Weight(raw.reshape(-1, raw.shape[-1]), cast(WeightType, self._file.info(key[0]).dtype))
            read[key] = room.get(key, source)
            if key in room:
                jobs.append((source, room[key]))
            elif source.dtype != key[1]:  # its rows are no whole vectors
                read[key] = Weight(codec(key[1]).encode(codec(source.dtype).decode(cast(Array, source.data))), key[1])
            if jobs and (len(jobs) == JOBS_A_ROUND or done == len(tensors)):
                self._backend.convert(jobs)
                jobs = []
            if progress:
                progress(done, len(tensors))
        return {role: self._finish(role, place[1], read[place[0], kinds[role]]) for role, place in places.items()}

    def _converts(self, name: str, kind: WeightType) -> bool:
        """Whether the backend makes this type of the tensor: it takes whole vectors."""
        info = self._file.info(name)
        return info.dtype != kind and (info.dtype in BLOCK_TYPES or info.shape[-1] % LANES == 0)

    def _kind(self, role: str, place: Place) -> WeightType:
        """The type to read a matrix in: the wanted one, but blocks whose columns change become float32 (as exact).

        Positions are float32 whatever the rest is: files quantise the tokens' table and leave theirs alone.
        """
        name, source = place
        if role == "positions":
            return "f32"
        own = cast(WeightType, self._file.info(name).dtype)
        if self._target == "packed":
            return own if own not in BLOCK_TYPES or only_rows_change(self._config, role, source) else "f32"
        return own if self._target == "int8" else cast(FloatType, self._target)

    def _finish(self, role: str, source: Source, weight: Weight) -> Weight:
        weight = Weight(in_place(self._config, role, source, cast(Array, weight.data)), weight.dtype)
        quantised = self._target == "int8" and role != "positions" and not role.endswith(".router")
        if quantised and weight.columns % BLOCK_TYPES["q8_0"][0] == 0:
            return Weight(quantize_q8_0(codec(weight.dtype).decode(weight.data)), "q8_0")
        return weight

    def _matrix(self, name: str) -> tuple[int, int]:
        """Rows and columns; stacked matrices are one."""
        info = self._file.info(name)
        return info.rows, info.cols

    def _room(self, keys: list[tuple[str, WeightType]]) -> dict[tuple[str, WeightType], Weight]:
        """Matrices to convert into, side by side in one block of large memory, in the order they are read in a step."""
        made = allocate({key: (self._matrix(key[0]), HELD_AS[key[1]]) for key in keys})
        return {key: Weight(array, key[1]) for key, array in made.items()}
