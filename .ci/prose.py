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

# maximum number of banned lines in files that are not cleaned up yet, or that use the key "foreign" of stored results
BASELINE: dict[str, int] = {
    "benchmarks/quality/report.py": 1,
    "benchmarks/quality/wordings.py": 2,
    "src/promptembedder/cli/evaluate_aspects.py": 2,
    "src/promptembedder/evaluation/aspects.py": 5,
}


def find_banned(path: Path) -> Iterator[tuple[int, str]]:
    """Yield number and text of each line that contains a banned word or opening."""
    text = GENERATED.sub(lambda block: "\n" * block[0].count("\n"), path.read_text(encoding="utf-8"))
    for number, line in enumerate(text.splitlines(), start=1):
        if BANNED.search(line):
            yield number, line.strip()


def main() -> int:
    """Print each banned line. Return 1 if a file has more of them than its baseline, else 0."""
    failed = False
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*")):
            name = path.relative_to(ROOT).as_posix()
            if path.suffix not in SUFFIXES or name.startswith(SKIPPED):
                continue
            lines = list(find_banned(path))
            if len(lines) > BASELINE.get(name, 0):
                failed = True
                sys.stdout.writelines(f"{name}:{number}: {line}\n" for number, line in lines)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
