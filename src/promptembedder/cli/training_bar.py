"""Progress bar of a training run."""

from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from promptembedder.cli.console import err

__all__ = ["TrainingBar"]


class TrainingBar(TrainerCallback):
    """Progress bar with the step, the latest loss and the soft tokens' entropy."""

    def __init__(self) -> None:
        """Create the bar. It appears when training begins."""
        self._progress = Progress(
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("[cyan]{task.fields[note]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=err,
        )
        self._task: Any = None

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Start the bar at the current step, which is not 0 for a resumed run."""
        self._progress.start()
        self._task = self._progress.add_task("training", total=state.max_steps, completed=state.global_step, note="")

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Advance the bar."""
        self._progress.update(self._task, completed=state.global_step)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        """Show the latest loss and the soft tokens' entropy."""
        if logs and "loss" in logs:
            note = f"loss {float(logs['loss']):.3f}"
            if "soft_token_entropy" in logs:
                note += f"  entropy {logs['soft_token_entropy']:.2f}"
            self._progress.update(self._task, note=note)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Leave the finished bar on screen."""
        self._progress.stop()
