"""Single values out of an untrusted description of a model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kvist.errors import ModelFileError

MOST = 1 << 48


def whole(values: Mapping[str, Any], name: str) -> int:
    """A whole number from 1 that is no nonsense as a size."""
    value = values.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value < MOST:
        raise ModelFileError(
            f"the model's config gives {name} = {value!r:.40}: expected a whole number from 1; get the file again"
        )
    return value


def number(value: object, name: str) -> float:
    """A number that a float holds."""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise ModelFileError(f"the model's config gives {name} = {value!r:.40}: expected a number; get the file again")
    try:
        return float(value)
    except OverflowError:
        raise ModelFileError(f"the model's config gives a {name} that no float holds: get the file again") from None


def length(value: object, name: str) -> int:
    """A whole number, which some configs write as a float."""
    found = number(value, name)
    if not found.is_integer():
        raise ModelFileError(f"the model's config gives {name} = {value!r:.40}: expected a whole number")
    return int(found)
