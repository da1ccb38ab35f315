"""Every error kvist raises on purpose.

Each message is one line that says what is wrong and what to do about it; the command line prints it as it is.

::

    KvistError                      (exit status 1)
     ├─ UsageError                  (2)  an argument, flag or request that cannot be meant
     │   ├─ UnknownNameError        (2)  a name that is not known; lists near matches
     │   └─ RequestError            (2)  a request this engine refuses (too long, can never fit)
     ├─ CapacityError               (1)  too little memory; carries the arithmetic
     ├─ ModelFileError              (1)  a model file that is missing, truncated, foreign or damaged
     ├─ UnsupportedModelError       (1)  a sound file of an architecture or type kvist does not run
     ├─ DownloadError               (1)  a pull that did not complete; nothing half-written is left
     ├─ ServerError                 (1)  a server to be measured that does not answer as it should
     └─ InternalError               (1)  a broken invariant: a defect in kvist, please report it
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class KvistError(Exception):
    """Base of all errors raised on purpose; ``exit_status`` is what the command line leaves with."""

    exit_status = 1


class UsageError(KvistError, ValueError):
    """An argument that cannot be meant as given."""

    exit_status = 2


class UnknownNameError(UsageError):
    """A name that is not known. Build it with `unknown_name` to list near matches."""


class RequestError(UsageError):
    """A request the engine refuses; the message carries the arithmetic."""


class CapacityError(KvistError):
    """Too little memory for what was asked; the message carries the arithmetic."""


class ModelFileError(KvistError):
    """A model file that is missing, truncated, foreign or damaged."""


class UnsupportedModelError(KvistError):
    """A sound model file of an architecture, type or size that kvist does not run."""


class DownloadError(KvistError):
    """A pull that did not complete. Nothing half-written is left behind."""


class ServerError(KvistError):
    """A server to be measured that cannot be reached, or does not answer as it should."""


class InternalError(KvistError):
    """A broken invariant inside kvist: a defect, never the user's fault."""


def unknown_name(kind: str, name: str, known: Iterable[str]) -> UnknownNameError:
    """Error for an unknown `name` of some `kind`, with near matches first, else all `known` names."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    if near:
        return UnknownNameError(f"unknown {kind} {name!r}: did you mean {' or '.join(near)}?")
    return UnknownNameError(f"unknown {kind} {name!r}: known are {', '.join(names) or 'none'}")
