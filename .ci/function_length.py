"""Check that no function of the package and the benchmarks is longer than a screen."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
FOLDERS = ("src", "benchmarks")
MAX_LINES = 60  # from `def` to the last statement, with signature, docstring and comments
# decorated or registered as a command: the signature is the list of its options, the docstring its help text
COMMANDS = "cli"


def find_long_functions(path: Path) -> Iterator[tuple[int, str, int]]:
    """Yield line, name and length of each function that is too long, nested functions and methods included."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno is not None:
            first = node.body[min(len(node.body) - 1, 1)] if COMMANDS in path.parts else node
            length = node.end_lineno - first.lineno + 1
            if length > MAX_LINES:
                yield node.lineno, node.name, length


def main() -> int:
    """Print each function that is too long. Return 1 if there is one, else 0."""
    failed = False
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*.py")):
            for line, name, length in find_long_functions(path):
                failed = True
                sys.stdout.write(f"{path.relative_to(ROOT)}:{line}: {name} has {length} lines, at most {MAX_LINES}\n")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
