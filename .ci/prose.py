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

# maximum number of banned lines in files that are not cleaned up yet; lower it with each clean-up
BASELINE: dict[str, int] = {
    "benchmarks/corpus/benchmark.py": 13,
    "benchmarks/corpus/report.py": 1,
    "benchmarks/corpus/runs.py": 5,
    "benchmarks/ddp_step.py": 1,
    "benchmarks/determinism.py": 1,
    "benchmarks/efficiency/benchmark.py": 1,
    "benchmarks/efficiency/cell.py": 2,
    "benchmarks/efficiency/config.py": 3,
    "benchmarks/efficiency/limits.py": 1,
    "benchmarks/efficiency/methods.py": 1,
    "benchmarks/efficiency/results.py": 1,
    "benchmarks/efficiency/step.py": 3,
    "benchmarks/efficiency/worker.py": 2,
    "benchmarks/faults/campaigns.py": 2,
    "benchmarks/faults/child.py": 3,
    "benchmarks/faults/folders.py": 2,
    "benchmarks/faults/fuzz.py": 12,
    "benchmarks/faults/fuzz_inputs.py": 3,
    "benchmarks/faults/fuzz_models.py": 2,
    "benchmarks/faults/fuzz_reader.py": 7,
    "benchmarks/faults/fuzz_server.py": 2,
    "benchmarks/faults/fuzz_settings.py": 1,
    "benchmarks/faults/fuzz_worker.py": 8,
    "benchmarks/faults/report.py": 1,
    "benchmarks/faults/result.py": 1,
    "benchmarks/faults/saving.py": 3,
    "benchmarks/faults/soak.py": 2,
    "benchmarks/faults/text.py": 1,
    "benchmarks/faults/training.py": 5,
    "benchmarks/memory.py": 2,
    "benchmarks/options.py": 1,
    "benchmarks/quality/benchmark.py": 8,
    "benchmarks/quality/mixture_config.py": 3,
    "benchmarks/quality/report.py": 6,
    "benchmarks/quality/run.py": 3,
    "benchmarks/quality/wordings.py": 3,
    "benchmarks/report.py": 3,
    "benchmarks/result_content.py": 1,
    "benchmarks/serving/benchmark.py": 2,
    "benchmarks/serving/load.py": 1,
    "benchmarks/serving/report.py": 1,
    "benchmarks/serving/servers.py": 1,
    "benchmarks/speed/benchmark.py": 4,
    "benchmarks/speed/cases.py": 1,
    "benchmarks/speed/machine_rates.py": 1,
    "benchmarks/speed/report.py": 1,
    "benchmarks/transfer/benchmark.py": 11,
    "benchmarks/transfer/report.py": 1,
    "src/promptembedder/cli/evaluate_aspects.py": 2,
    "src/promptembedder/evaluation/aspects.py": 5,
    "src/promptembedder/method/soft_token_cache.py": 1,
    "src/promptembedder/method/soft_token_encoder.py": 5,
    "src/promptembedder/method/text_encoder.py": 5,
    "src/promptembedder/model/baselines.py": 3,
    "src/promptembedder/model/checkpoint.py": 4,
    "src/promptembedder/model/dual_encoder.py": 12,
    "src/promptembedder/model/embedder.py": 1,
    "src/promptembedder/model/loading.py": 2,
    "src/promptembedder/model/model_card.py": 2,
    "src/promptembedder/model/prompted_transformer.py": 1,
    "src/promptembedder/model/self_test.py": 1,
    "src/promptembedder/model/transfer.py": 3,
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
