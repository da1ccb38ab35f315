"""Say how large the source is, and fail where a file or a function has outgrown one idea or one screen.

python scripts/check_size.py [FOLDER]
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

FILE_LINES = 300
FUNCTION_LINES = 60


def functions(tree: ast.AST, prefix: str = "") -> Iterator[tuple[str, int, int]]:
    """Every function's qualified name, first line and lines of its own: functions inside it are counted by
    themselves.
    """
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            name = prefix + node.name
            if not isinstance(node, ast.ClassDef):
                yield name, node.lineno, length(node) - sum(length(inner) for inner in inside(node))
            yield from functions(node, name + ".")
        else:
            yield from functions(node, prefix)


def length(node: ast.stmt) -> int:
    """Lines from the first to the last."""
    return (node.end_lineno or node.lineno) - node.lineno + 1


def inside(tree: ast.AST) -> Iterator[ast.stmt]:
    """The outermost functions below a node."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node
        else:
            yield from inside(node)


def main(root: Path) -> int:
    """Print what is over, then the total; the exit status."""
    over, total, files = [], 0, sorted(root.rglob("*.py"))
    for file in files:
        source = file.read_text(encoding="utf-8")
        lines = len(source.splitlines())
        total += lines
        if lines > FILE_LINES:
            over.append(f"{file}: {lines} lines, over {FILE_LINES}")
        for name, line, own in functions(ast.parse(source)):
            if own > FUNCTION_LINES:
                over.append(f"{file}:{line}: {name} has {own} lines, over {FUNCTION_LINES}")
    print(*over, f"{root}: {len(files)} files, {total} lines", sep="\n")
    return 1 if over else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1] if len(sys.argv) > 1 else "src")))
