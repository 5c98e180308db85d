"""Evaluate with mteb, each task under its instruction: python examples/evaluate_with_mteb.py MODEL [TASK ...].

Without a task, mteb's small made-up ones check that the model does all that mteb asks of one; official tasks take their
data from the hub. The same from a shell: promptembedder mteb run -m MODEL_FOLDER -t STSBenchmark.
"""

import sys
from pathlib import Path

import mteb
from mteb.mocks.mock_run import get_compatible_mock_tasks

from promptembedder import PromptEmbedder
from promptembedder.evaluation import model_meta


def main(name: str, *tasks: str) -> None:
    """Print the score of each task."""
    meta = model_meta(name if Path(name).is_dir() else PromptEmbedder.create(prompter=name))
    chosen = mteb.get_tasks(tasks=list(tasks)) if tasks else get_compatible_mock_tasks(meta.load_model())[:2]
    results = mteb.evaluate(meta, chosen, cache=None, co2_tracker=False, show_progress_bar=False)
    for result in results.task_results:
        print(f"{result.get_score():.4f}  {result.task_name}")


if __name__ == "__main__":
    main(*(sys.argv[1:] or ["smollm2-135m"]))
