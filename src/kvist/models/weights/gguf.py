"""GGUF files, versions 2 and 3: metadata and raw tensors, every number checked before it is used.

::

    "GGUF" | version u32 | tensors u64 | entries u64
    entry   x entries : key string | type u32 | value      string = length u64, bytes in UTF-8
    tensor  x tensors : name string | dimensions u32 | size u64 x dimensions, fastest first | type u32 | offset u64
    padding to a multiple of general.alignment (32)
    tensor data, each at its offset from here

All numbers are little-endian. An array value is: element type u32, count u64, elements.
"""

from __future__ import annotations

import math
import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kvist.errors import InternalError, ModelFileError, UnsupportedModelError, unknown_name
from kvist.models.weights.tensors import BLOCK_TYPES, TensorInfo, map_file, unsupported_type, view

MAGIC = b"GGUF"
MAX_ELEMENTS = 1 << 24  # elements in all arrays together; the largest vocabularies have 262,144 tokens
MAX_DEPTH = 4  # arrays in arrays
MAX_DIMENSIONS = 4

SCALARS = {0: "u1", 1: "i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 7: "?", 10: "<u8", 11: "<i8", 12: "<f8"}
STRING, ARRAY = 8, 9

TENSOR_TYPES = {0: "f32", 1: "f16", 2: "q4_0", 3: "q4_1", 8: "q8_0", 12: "q4_k", 14: "q6_k", 30: "bf16"}
FOREIGN_TYPES = {
    6: "q5_0", 7: "q5_1", 9: "q8_1", 10: "q2_k", 11: "q3_k", 13: "q5_k", 15: "q8_k", 16: "iq2_xxs", 17: "iq2_xs",
    18: "iq3_xxs", 19: "iq1_s", 20: "iq4_nl", 21: "iq3_s", 22: "iq2_s", 23: "iq4_xs", 24: "i8", 25: "i16", 26: "i32",
    27: "i64", 28: "f64", 29: "iq1_m", 34: "tq1_0", 35: "tq2_0", 39: "mxfp4",
}  # fmt: skip
"""Types that GGUF has and kvist does not read: only for the words of an error."""

_U32, _U64 = struct.Struct("<I"), struct.Struct("<Q")


class _Cursor:
    """Reads forward through a mapped header; knows how much of the file is left."""

    def __init__(self, data: mmap.mmap, path: Path) -> None:
        self.data, self.path = data, path
        self.pos, self.end = 0, len(data)
        self.elements = MAX_ELEMENTS

    def damaged(self, what: str) -> ModelFileError:
        """Error for something in the file that cannot be."""
        return ModelFileError(f"{self.path} is damaged or truncated ({what} at byte {self.pos:,}): get the file again")

    def need(self, size: int, what: str) -> None:
        """Raise unless `size` more bytes are left."""
        if size > self.end - self.pos:
            raise self.damaged(f"{what} does not fit into the file's {self.end:,} bytes")

    def u32(self, what: str) -> int:
        self.need(4, what)
        self.pos += 4
        return int(_U32.unpack_from(self.data, self.pos - 4)[0])

    def u64(self, what: str) -> int:
        self.need(8, what)
        self.pos += 8
        return int(_U64.unpack_from(self.data, self.pos - 8)[0])

    def string(self, what: str) -> str:
        return self.strings(1, what)[0]

    def strings(self, count: int, what: str) -> list[str]:
        """`count` strings; the loop is flat because a vocabulary has hundreds of thousands."""
        self.need(8 * count, what)
        data, pos, end, length = self.data, self.pos, self.end, _U64.unpack_from
        found: list[str] = []
        try:
            for _ in range(count):
                if pos + 8 > end:
                    break
                stop = pos + 8 + length(data, pos)[0]
                if stop > end:
                    break
                found.append(data[pos + 8 : stop].decode())
                pos = stop
        except UnicodeDecodeError as error:
            raise self.damaged(f"{what} is not UTF-8") from error
        if len(found) != count:
            raise self.damaged(f"{what} does not fit into the file's {end:,} bytes")
        self.pos = pos
        return found

    def value(self, kind: int, what: str, depth: int = 0) -> object:
        """A metadata value: bool, int, float, str, a NumPy array of scalars, a list of str or of arrays."""
        if kind == STRING:
            return self.string(what)
        if kind == ARRAY:
            return self.array(what, depth)
        if kind not in SCALARS:
            raise self.damaged(f"{what} has the unknown value type {kind}")
        return self.scalars(kind, 1, what)[0].item()

    def scalars(self, kind: int, count: int, what: str) -> npt.NDArray[Any]:
        """`count` numbers, copied: (count,) of their own type, read-only."""
        dtype = np.dtype(SCALARS[kind])
        size = count * dtype.itemsize
        self.need(size, what)
        raw = self.data[self.pos : self.pos + size]
        self.pos += size
        found = np.frombuffer(raw, np.uint8 if kind == 7 else dtype)
        return found != 0 if kind == 7 else found

    def array(self, what: str, depth: int) -> object:
        if depth >= MAX_DEPTH:
            raise self.damaged(f"{what} nests arrays more than {MAX_DEPTH} deep")
        kind, count = self.u32(what), self.u64(what)
        self.elements -= count
        if self.elements < 0:
            raise self.damaged(f"{what} has {count:,} elements, over the limit of {MAX_ELEMENTS:,}")
        if kind == STRING:
            return self.strings(count, what)
        if kind == ARRAY:
            self.need(12 * count, what)
            return [self.array(what, depth + 1) for _ in range(count)]
        if kind not in SCALARS:
            raise self.damaged(f"{what} has the unknown element type {kind}")
        return self.scalars(kind, count, what)


@dataclass(frozen=True)
class _Place:
    """A tensor's header entry: `info` is None where the type is not one of ours."""

    info: TensorInfo | None
    type_id: int
    offset: int  # from the start of the file


class GgufFile:
    """An opened GGUF file: `metadata` by key, and the tensors of `TensorFile`.

    Metadata values are bool, int, float, str, read-only NumPy arrays of numbers, lists of str, or lists of such.
    Raises ModelFileError where the file is damaged, UnsupportedModelError for another version, byte order or a part.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._map: mmap.mmap | None = map_file(path)
        cursor = _Cursor(self._map, path)
        tensors, entries = self._start(cursor)
        self.metadata = self._metadata(cursor, entries)
        self._places = self._tensors(cursor, tensors)
        split = self.metadata.get("split.count", 0)
        if isinstance(split, int) and split > 1:
            raise UnsupportedModelError(
                f"{path.name} is one of {split} parts: join them with `llama-gguf-split --merge FIRST_PART OUT.gguf`"
            )

    @property
    def path(self) -> Path:
        """The file that was opened."""
        return self._path

    def _start(self, cursor: _Cursor) -> tuple[int, int]:
        """Check magic and version; number of tensors, number of metadata entries."""
        cursor.need(4, "the magic number")
        if cursor.data[:4] != MAGIC:
            raise ModelFileError(f"{cursor.path} is not a GGUF file: it does not start with 'GGUF', check the path")
        cursor.pos = 4
        version = cursor.u32("the version")
        if version in (0x01000000, 0x02000000, 0x03000000):
            raise UnsupportedModelError(f"{cursor.path} is a big-endian GGUF file: convert it to little-endian")
        if version not in (2, 3):
            raise UnsupportedModelError(f"{cursor.path} has GGUF version {version}: kvist reads 2 and 3, convert it")
        return cursor.u64("the number of tensors"), cursor.u64("the number of entries")

    def _metadata(self, cursor: _Cursor, entries: int) -> dict[str, object]:
        cursor.need(13 * entries, f"a count of {entries:,} metadata entries")
        found: dict[str, object] = {}
        for _ in range(entries):
            key = cursor.string("a metadata key")
            if key in found:
                raise cursor.damaged(f"the metadata key {key[:80]!r} comes twice")
            found[key] = cursor.value(cursor.u32("a value type"), f"the value of {key[:80]!r}")
        return found

    def _tensors(self, cursor: _Cursor, count: int) -> dict[str, _Place]:
        cursor.need(24 * count, f"a count of {count:,} tensors")
        rows: list[tuple[str, tuple[int, ...], int, int]] = []
        for _ in range(count):
            name = cursor.string("a tensor name")
            dimensions = cursor.u32("a number of dimensions")
            if dimensions > MAX_DIMENSIONS:
                raise cursor.damaged(f"tensor {name[:80]!r} has {dimensions} dimensions")
            shape = tuple(cursor.u64("a dimension") for _ in range(dimensions))[::-1]
            rows.append((name, shape, cursor.u32("a tensor type"), cursor.u64("a tensor offset")))
        alignment = self.metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or not 8 <= alignment <= 1 << 20 or alignment % 8:
            raise cursor.damaged(f"general.alignment is {alignment!r}")
        start = -(-cursor.pos // alignment) * alignment
        found: dict[str, _Place] = {}
        for name, shape, type_id, offset in rows:
            if name in found:
                raise cursor.damaged(f"the tensor {name[:80]!r} comes twice")
            if offset % alignment or offset > cursor.end:
                raise cursor.damaged(f"tensor {name[:80]!r} has the offset {offset:,}")
            found[name] = _Place(self._info(cursor, name, shape, type_id, start + offset), type_id, start + offset)
        return found

    def _info(self, cursor: _Cursor, name: str, shape: tuple[int, ...], type_id: int, offset: int) -> TensorInfo | None:
        """The tensor's description, checked against the file; None for a type that kvist does not read."""
        if math.prod(shape) == 0 or math.prod(shape) > 8 * cursor.end:
            raise cursor.damaged(f"tensor {name[:80]!r} has the shape {shape}")
        dtype = TENSOR_TYPES.get(type_id)
        if dtype is None:
            return None
        info = TensorInfo(name, dtype, shape)
        block = BLOCK_TYPES.get(dtype, (1, 1))[0]
        if info.cols % block:
            raise cursor.damaged(f"tensor {name[:80]!r} of type {dtype} has rows of {info.cols}, not blocks of {block}")
        if offset + info.nbytes > cursor.end:
            raise cursor.damaged(f"the data of tensor {name[:80]!r} end after the file")
        return info

    def names(self) -> list[str]:
        """Names of all tensors, sorted."""
        return sorted(self._places)

    def info(self, name: str) -> TensorInfo:
        """Type and shape of a tensor; see `TensorFile.info`."""
        if name not in self._places:
            raise unknown_name("tensor", name, self._places)
        place = self._places[name]
        if place.info is None:
            raise unsupported_type(name, FOREIGN_TYPES.get(place.type_id, f"number {place.type_id}"), self._path)
        return place.info

    def raw(self, name: str) -> npt.NDArray[Any]:
        """A read-only view of the tensor as it lies in the file; see `TensorFile.raw`."""
        info = self.info(name)
        if self._map is None:
            raise InternalError(f"tensor {name} was asked of {self._path}, which is closed")
        return view(self._map, self._places[name].offset, info)

    def close(self) -> None:
        """Let go of the file; views that are still held stay valid."""
        self._map = None
