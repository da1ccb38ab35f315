"""safetensors: one file, or a folder of shards with an index; memory-mapped, never pickle.

::

    length u64 | header: JSON of that length | data
    header = {"__metadata__": {...}, "name": {"dtype": "BF16", "shape": [rows, cols], "data_offsets": [first, after]}}

The `safetensors` library checks the header (it cannot give bfloat16 to NumPy, so the views are ours); what the views
rely on is checked once more here.
"""

from __future__ import annotations

import math
import mmap
import struct
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy.typing as npt

from kvist.errors import InternalError, ModelFileError, unknown_name
from kvist.jsonfile import parse_json_object, read_json_object
from kvist.models.weights.tensors import TensorInfo, map_file, unsupported_type, view

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
MAX_HEADER = 100_000_000  # the library's own limit

TENSOR_TYPES = {"F32": "f32", "F16": "f16", "BF16": "bf16"}


@dataclass(frozen=True)
class _Place:
    """Where a tensor lies: its shard, its first byte there, and its type in the file's words."""

    shard: Path
    offset: int
    dtype: str
    shape: tuple[int, ...]


class SafetensorsFile:
    """An opened safetensors file, or a folder's `model.safetensors` or shards: the tensors of `TensorFile`.

    Raises ModelFileError where a file is missing, truncated, damaged, or named outside the folder by the index.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._maps: dict[Path, mmap.mmap] = {}
        if path.is_dir() and (path / INDEX).is_file():
            self._places = self._read_shards(path / INDEX)
        else:
            file = path / SINGLE if path.is_dir() else path
            self._places = self._read(file)

    @property
    def path(self) -> Path:
        """The file or folder that was opened."""
        return self._path

    def _read_shards(self, index: Path) -> dict[str, _Place]:
        """The tensors that the index names, each from the shard it names."""
        weight_map = read_json_object(index, unique=True).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise ModelFileError(f"{index} has no weight_map: the index is damaged, get it again")
        shards: dict[str, dict[str, _Place]] = {}
        found: dict[str, _Place] = {}
        for name, shard in weight_map.items():
            if not isinstance(shard, str) or not _stays_inside(shard):
                raise ModelFileError(f"{index} names the shard {shard!r}, outside its folder: do not trust this model")
            if shard not in shards:
                if not (index.parent / shard).is_file():
                    raise ModelFileError(f"{index.parent / shard} is in the index but missing: pull the model again")
                shards[shard] = self._read(index.parent / shard)
            if name not in shards[shard]:
                raise ModelFileError(f"{index.parent / shard} lacks the tensor {name} of the index: pull again")
            found[name] = shards[shard][name]
        return found

    def _read(self, file: Path) -> dict[str, _Place]:
        """Map one file and check its header."""
        data = map_file(file)
        _check_with_library(file, data)
        (length,) = struct.unpack_from("<Q", data)
        start = 8 + length
        header = parse_json_object(data[8:start], f"the header of {file}", unique=True)
        header.pop("__metadata__", None)
        found = {}
        for name, entry in header.items():
            place = _place(file, start, entry)
            if place is None or not _fits(place, len(data)):
                raise ModelFileError(f"{file} is damaged (tensor {name[:80]!r} cannot lie where it says): get it again")
            found[name] = place
        self._maps[file] = data
        return found

    def names(self) -> list[str]:
        """Names of all tensors, sorted."""
        return sorted(self._places)

    def info(self, name: str) -> TensorInfo:
        """Type and shape of a tensor; see `TensorFile.info`."""
        place = self._places.get(name)
        if place is None:
            raise unknown_name("tensor", name, self._places)
        if place.dtype not in TENSOR_TYPES:
            raise unsupported_type(name, place.dtype, place.shard)
        return TensorInfo(name, TENSOR_TYPES[place.dtype], place.shape)

    def raw(self, name: str) -> npt.NDArray[Any]:
        """A read-only view of the tensor as it lies in the file; see `TensorFile.raw`."""
        info = self.info(name)
        place = self._places[name]
        if place.shard not in self._maps:
            raise InternalError(f"tensor {name} was asked of {self._path}, which is closed")
        return view(self._maps[place.shard], place.offset, info)

    def close(self) -> None:
        """Let go of the files; views that are still held stay valid."""
        self._maps.clear()


def _stays_inside(shard: str) -> bool:
    """Whether a shard's name is a plain path below the folder of its index."""
    if not shard or "\\" in shard or "\0" in shard:
        return False
    path = PurePosixPath(shard)
    return not path.is_absolute() and not PureWindowsPath(shard).drive and ".." not in path.parts


def _check_with_library(file: Path, data: mmap.mmap) -> None:
    """Let the `safetensors` library judge the header, after the two numbers that decide how much it allocates."""
    from safetensors import SafetensorError, safe_open

    length = struct.unpack_from("<Q", data)[0] if len(data) >= 8 else -1
    if not 2 <= length <= min(len(data) - 8, MAX_HEADER):
        raise ModelFileError(f"{file} is not a whole safetensors file (its header cannot fit): get the file again")
    try:
        with safe_open(str(file), framework="numpy"):
            pass
    except (SafetensorError, OSError, ValueError) as error:
        cause = " ".join(str(error).split())
        raise ModelFileError(f"{file} is damaged or truncated ({cause[:200]}): get the file again") from error


def _place(file: Path, start: int, entry: object) -> _Place | None:
    """A header entry in our words; None where it is not made of the right things."""
    if not isinstance(entry, dict):
        return None
    dtype, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    if not isinstance(dtype, str) or not isinstance(shape, list) or not isinstance(offsets, list) or len(offsets) != 2:
        return None
    if any(type(number) is not int or number < 0 for number in (*shape, *offsets)) or offsets[0] > offsets[1]:
        return None
    place = _Place(file, start + offsets[0], dtype, tuple(shape))
    if dtype in TENSOR_TYPES and TensorInfo("", TENSOR_TYPES[dtype], place.shape).nbytes != offsets[1] - offsets[0]:
        return None
    return place


def _fits(place: _Place, size: int) -> bool:
    """Whether the tensor ends inside its file of `size` bytes and its shape is one that NumPy can hold."""
    if place.dtype not in TENSOR_TYPES:
        return True
    if len(place.shape) > 8 or math.prod(max(1, n) for n in place.shape) > max(size, 1 << 40):
        return False
    return place.offset + TensorInfo("", TENSOR_TYPES[place.dtype], place.shape).nbytes <= size
