"""Check the prose of docstrings, comments, messages and documents for banned words and openings."""

import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
FOLDERS = ("src", "docs", "benchmarks")
SUFFIXES = (".py", ".md", ".jinja", ".html")
BANNED = re.compile(
    r"(?i:nobody|stranger|\bsaid\b|\btold\b|\bmend\b|foreign|\btorn\b|at hand)|^\s*\"\"\"(What|Whether|Of) "
)

# generated from the JSON of measurements, never edited by hand
SKIPPED = ("benchmarks/results/",)
GENERATED = re.compile(r"<!-- (\w+) -->.*?<!-- end \1 -->", re.DOTALL)


def find_banned(path: Path) -> Iterator[tuple[int, str]]:
    """Yield number and text of each line that contains a banned word or opening."""
    text = GENERATED.sub(lambda block: "\n" * block[0].count("\n"), path.read_text(encoding="utf-8"))
    for number, line in enumerate(text.splitlines(), start=1):
        if BANNED.search(line):
            yield number, line.strip()


def main() -> int:
    """Print each banned line. Return 1 if there is one, else 0."""
    failed = False
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*")):
            name = path.relative_to(ROOT).as_posix()
            if path.suffix not in SUFFIXES or name.startswith(SKIPPED):
                continue
            for number, line in find_banned(path):
                failed = True
                sys.stdout.write(f"{name}:{number}: {line}\n")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
