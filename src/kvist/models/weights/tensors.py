"""Named raw tensors in a file: what every reader of model files gives, without any knowledge of models."""

from __future__ import annotations

import math
import mmap
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from kvist.errors import ModelFileError, UnsupportedModelError
from kvist.kernels.program import BLOCK_TYPES

FLOAT_TYPES: dict[str, type[np.generic]] = {"f32": np.float32, "f16": np.float16, "bf16": np.uint16}
"""Plain types and how their elements are held; bfloat16 is the upper half of a float32, held as uint16."""

__all__ = ["BLOCK_TYPES", "DTYPES", "FLOAT_TYPES", "TensorFile", "TensorInfo", "map_file", "unsupported_type", "view"]

DTYPES: tuple[str, ...] = (*FLOAT_TYPES, *BLOCK_TYPES)


@dataclass(frozen=True)
class TensorInfo:
    """One tensor of a file: `shape` counts elements in NumPy order (rows, cols), also for quantised types."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def cols(self) -> int:
        """Elements of the last dimension (1 for a scalar)."""
        return self.shape[-1] if self.shape else 1

    @property
    def rows(self) -> int:
        """Product of all dimensions but the last (1 for a vector or a scalar)."""
        return math.prod(self.shape[:-1])

    @property
    def row_bytes(self) -> int:
        """Bytes of one row in the file."""
        if self.dtype in BLOCK_TYPES:
            elements, size = BLOCK_TYPES[self.dtype]
            return self.cols // elements * size
        return self.cols * np.dtype(FLOAT_TYPES[self.dtype]).itemsize

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor in the file."""
        return self.rows * self.row_bytes


class TensorFile(Protocol):
    """An opened model file (or folder of shards). Tensors stay on disk until their pages are touched."""

    @property
    def path(self) -> Path:
        """The file or folder that was opened."""

    def names(self) -> list[str]:
        """Names of all tensors, sorted."""

    def info(self, name: str) -> TensorInfo:
        """Type and shape of a tensor.

        Raises UnknownNameError for a name that is not in the file, UnsupportedModelError for a type kvist cannot read.
        """

    def raw(self, name: str) -> npt.NDArray[Any]:
        """A read-only view of the tensor as it lies in the file; errors as `info`.

        f32, f16: that type, and bf16: uint16, in the tensor's shape; quantised: uint8 (rows, bytes of a row).
        A copy only where the file leaves the numbers unaligned.
        """

    def close(self) -> None:
        """Let go of the file. Views that are still held stay valid; nothing more can be read. Twice is fine."""


def map_file(path: Path) -> mmap.mmap:
    """Map a whole file for reading. Raises ModelFileError where it is missing, empty, a folder or unreadable."""
    try:
        with path.open("rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise ModelFileError(f"cannot read {path} ({error.strerror}): check the path and its permissions") from error
    except ValueError as error:
        raise ModelFileError(f"{path} is empty: the download did not complete, get the file again") from error


def view(mapping: mmap.mmap, offset: int, info: TensorInfo) -> npt.NDArray[Any]:
    """The tensor `info` at byte `offset` of a mapped file, shaped as `TensorFile.raw` says; bounds were checked."""
    if info.dtype in BLOCK_TYPES:
        kind: type[np.generic] = np.uint8
        shape: tuple[int, ...] = (info.rows, info.row_bytes)
    else:
        kind, shape = FLOAT_TYPES[info.dtype], info.shape
    count = math.prod(shape)
    if count == 0:
        return np.empty(shape, kind)
    array: npt.NDArray[Any] = np.frombuffer(mapping, kind, count, offset).reshape(shape)
    if not array.flags.aligned:
        array = array.copy()
        array.flags.writeable = False
    return array


def unsupported_type(name: str, found: str, where: Path) -> UnsupportedModelError:
    """Error for a tensor whose type kvist does not read."""
    return UnsupportedModelError(
        f"tensor {name} of {where.name} is of type {found}: kvist reads {', '.join(DTYPES)}; convert it to one of these"
    )
