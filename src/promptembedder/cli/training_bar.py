"""Progress of a training run."""

from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from promptembedder.cli.progress import ProgressDisplay

__all__ = ["TrainingBar"]


class TrainingBar(TrainerCallback):
    """Progress with the step, the latest loss and the soft tokens' entropy."""

    def __init__(self) -> None:
        """Create the callback. Progress appears when training begins."""
        self._display: ProgressDisplay | None = None

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Start at the current step, which is not 0 for a resumed run."""
        self._display = ProgressDisplay("steps", measured=5)
        self._display.restart(total=state.max_steps, completed=state.global_step)
        self._display.__enter__()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Show the step."""
        if self._display is not None:
            self._display.update(state.global_step)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        """Show the latest loss and the soft tokens' entropy."""
        if self._display is not None and logs and "loss" in logs:
            note = f"loss {float(logs['loss']):.3f}"
            if "soft_token_entropy" in logs:
                note += f"  entropy {logs['soft_token_entropy']:.2f}"
            self._display.update(state.global_step, note=note)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Remove the bar."""
        if self._display is not None:
            self._display.__exit__()
