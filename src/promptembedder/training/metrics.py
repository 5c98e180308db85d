"""Metrics of a run as lines of JSON, always; a resumed run goes on where its checkpoint was."""

import json
import time
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from promptembedder.storage import write_text

__all__ = ["JsonlMetrics"]


class JsonlMetrics(TrainerCallback):
    """Appends one line for each logged step to a file; of several processes the first does."""

    def __init__(self, path: Path) -> None:
        """Write to `path`."""
        self.path = path
        self._started = time.perf_counter()

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Drop the lines that the resumed run will write again."""
        self._started = time.perf_counter()
        if not state.is_world_process_zero:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # the checkpoint knows all lines before it: those after it come again, even where they tell of the same step
        kept = self._lines()[: len(state.log_history)]
        kept += state.log_history[len(kept) :]  # lost with the power, or a file of its own that somebody deleted
        write_text(self.path, "".join(json.dumps(line) + "\n" for line in kept))  # killed here, none is lost

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        """Write the logged values with step and seconds since this process began to train."""
        if not state.is_world_process_zero:
            return
        seconds = round(time.perf_counter() - self._started, 2)
        line = {"step": state.global_step, "seconds": seconds, **(logs or {})}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def _lines(self) -> list[dict[str, Any]]:
        if not self.path.is_file():
            return []
        lines = []
        for text in self.path.read_text(encoding="utf-8").splitlines():
            try:
                lines.append(json.loads(text))
            except ValueError:
                continue  # the last line of a killed run may be cut off
        return lines
