"""`kvist ls`: the models that are pulled."""

from __future__ import annotations

import json

from kvist.cli.flags import Json
from kvist.cli.terminal import note
from kvist.models.hub import ALIASES, installed


def ls(json_: Json = False) -> None:
    """List the models that are pulled."""
    found = installed()
    if json_:
        rows = [
            {
                "name": entry.name,
                "path": str(entry.path),
                "bytes": entry.bytes,
                "licence": entry.licence,
                "complete": entry.complete,
            }
            for entry in found
        ]
        print(json.dumps(rows, indent=1))
        return
    if not found:
        note(f"no model is pulled yet: `kvist pull {next(iter(ALIASES))}` gets a small one")
        return
    table = [("NAME", "SIZE", "LICENCE", "PATH")]
    for entry in found:
        whole = "" if entry.complete else "  (only in part: pull it again)"
        table.append((entry.name, f"{entry.bytes / 1e6:,.0f} MB", entry.licence, f"{entry.path}{whole}"))
    widths = [max(len(row[i]) for row in table) for i in range(3)]
    for name, size, licence, path in table:
        print(f"{name:<{widths[0]}}  {size:>{widths[1]}}  {licence:<{widths[2]}}  {path}")
