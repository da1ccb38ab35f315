"""`kvist pull`: get a model."""

from __future__ import annotations

from typing import Annotated

import typer

from kvist.cli.terminal import Activity
from kvist.models.hub import pull as pull_model

Name = Annotated[str, typer.Argument(help="An alias (smollm2), ORG/NAME, or ORG/NAME:FILE.gguf.", show_default=False)]


def pull(name: Name) -> None:
    """Get a model and print where it lies. A model that is there and whole is left alone."""
    with Activity(f"pulling {name}") as activity:
        path = pull_model(name, lambda done, total, what: activity.report(f"{what} {name}", done, total))
    print(path)
