"""Model files as named raw tensors: what is in the file, without any knowledge of models."""

from kvist.models.weights.gguf import GgufFile
from kvist.models.weights.open import open_model
from kvist.models.weights.safetensors import SafetensorsFile
from kvist.models.weights.tensors import BLOCK_TYPES, DTYPES, FLOAT_TYPES, TensorFile, TensorInfo
from kvist.models.weights.unpack import unpack, unpack_chunks

__all__ = [
    "BLOCK_TYPES",
    "DTYPES",
    "FLOAT_TYPES",
    "GgufFile",
    "SafetensorsFile",
    "TensorFile",
    "TensorInfo",
    "open_model",
    "unpack",
    "unpack_chunks",
]
