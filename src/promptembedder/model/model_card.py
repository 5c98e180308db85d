"""Model card of a saved model: training data, backbones, instructions, and how to transfer it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sentence_transformers.base.evaluation import BaseEvaluator
from sentence_transformers.sentence_transformer.model_card import SentenceTransformerModelCardData

from promptembedder.method import DualEncoder

__all__ = ["PromptEmbedderCardData"]

_SHOWN_WORDINGS = 5  # per task


@dataclass
class PromptEmbedderCardData(SentenceTransformerModelCardData):
    """Model card data of sentence-transformers with the fields of this kind of model.

    Attributes:
        task_instructions: Instructions of the training by task, set by `note_instructions`.
    """

    tags: list[str] = field(
        default_factory=lambda: [
            "promptembedder",
            "sentence-transformers",
            "sentence-similarity",
            "feature-extraction",
            "dense",
        ]
    )
    template_path: Path = field(default=Path(__file__).parent / "model_card.md.jinja", init=False, repr=False)
    task_instructions: dict[str, list[str]] = field(default_factory=dict, init=False, repr=False)

    def note_instructions(self, task: str, instructions: Sequence[str], document_instructions: Sequence[str]) -> None:
        """Add the instructions that a task is trained under."""
        named = {task: instructions, f"{task}, documents": document_instructions}
        for name, wordings in named.items():
            if wordings and not (name != task and tuple(wordings) == tuple(instructions)):
                more = len(wordings) - _SHOWN_WORDINGS
                tail = [f"and {more} more wordings"] if more > 0 else []
                self.task_instructions[name] = [*map(_one_line, wordings[:_SHOWN_WORDINGS]), *tail]

    def try_to_set_base_model(self) -> None:
        """Set the base model to the reader if the manifest contains a hub id for it, without a request to the hub."""
        ref = self._encoder().reader.identity
        if _is_hub_name(ref.source):
            self.base_model, self.base_model_revision = ref.source, ref.revision

    def get_default_model_name(self) -> str:
        """Return the default model name, which contains the reader."""
        return f"PromptEmbedder on {self._encoder().reader.identity.source}"

    def get_model_specific_metadata(self) -> dict[str, Any]:
        """Return the variables of the template that other SentenceTransformers do not have."""
        if self.model is None:
            return {}
        encoder = self._encoder()
        prompts = {name: _one_line(text) for name, text in self.model.prompts.items() if text}
        return {
            **super().get_model_specific_metadata(),
            "reader": _described(vars(encoder.reader.identity)),
            "prompter": _described(vars(encoder.prompter.backbone.identity)) if encoder.prompter is not None else None,
            "readers": [encoder.reader.identity.source, *(side.identity["source"] for side in encoder.others)],
            "trained_parameters": f"{sum(weight.numel() for weight in encoder.trained_weights()):,}",
            "num_soft_tokens": encoder.config.num_soft_tokens,
            "default_instruction": _one_line(encoder.config.default_instruction),
            "saved_prompts": prompts,
            "example_instruction": self._example_instruction(prompts),
        }

    def set_evaluation_metrics(
        self, evaluator: BaseEvaluator, metrics: dict[str, Any], epoch: float = 0, step: int = 0
    ) -> None:
        """Record an evaluation, in place of earlier ones by an evaluator of the same kind and name.

        A model that is scored before and after its training would otherwise show both, as scores of the saved weights.
        """
        for earlier in list(self.eval_results_dict):
            if type(earlier) is type(evaluator) and vars(earlier).get("name") == vars(evaluator).get("name"):
                del self.eval_results_dict[earlier]
        if step < 0:  # outside of training
            logs: list[dict[str, Any]] = vars(self)["training_logs"]
            kept = [{name: value for name, value in row.items() if name not in metrics} for row in logs]
            logs[:] = [
                row if row["Step"] >= 0 else rest
                for row, rest in zip(logs, kept, strict=True)
                if row["Step"] >= 0 or rest.keys() - {"Epoch", "Step"}
            ]
        super().set_evaluation_metrics(evaluator, metrics, epoch=epoch, step=step)

    def run_usage_snippet(self) -> None:
        """Do nothing: the template's example shows no numbers."""

    def generate_usage_snippet(self) -> str:
        """Return an empty snippet: the template has its own, under an instruction."""
        return ""

    def _example_instruction(self, prompts: Mapping[str, str]) -> str:
        trained = next((wordings[0] for wordings in self.task_instructions.values()), None)
        default = self._encoder().config.default_instruction
        return _one_line(trained or next(iter(prompts.values()), default)).replace('"', "'")

    def _encoder(self) -> DualEncoder:
        assert self.model is not None
        encoder = self.model[0]
        assert isinstance(encoder, DualEncoder)
        return encoder


def _is_hub_name(source: str) -> bool:
    starts = (".", "/", "~", "random:")
    return source.count("/") == 1 and not source.startswith(starts) and not source.lower().endswith(".gguf")


def _described(ref: Mapping[str, Any]) -> str:
    """Describe a backbone in one line."""
    source = ref["source"]
    name = f"[{source}](https://huggingface.co/{source})" if _is_hub_name(source) else f"`{source}`"
    revision = f" at revision `{ref['revision']}`" if ref["revision"] else ""
    return f"{name}{revision}, {ref['layers']} layers, {ref['dtype']}, fingerprint `{ref['fingerprint'][:23]}`"


def _one_line(text: str) -> str:
    return " ".join(text.split())
