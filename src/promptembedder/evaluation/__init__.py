"""Evaluation of encoders."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

import promptembedder.backbone  # noqa: F401  # first: it imports transformers without torchao's warnings
from promptembedder.evaluation.comparison import BM25, ComparedScore, EncoderSystem, compare_on_task
from promptembedder.evaluation.evaluators import (
    InstructedSimilarityEvaluator,
    RetrievalScore,
    bm25_score,
    preserve_rng,
    retrieval_score,
    similarity_evaluator,
    vector_score,
)
from promptembedder.evaluation.tasks import EvaluationTask, paraphrases_of, read_tasks, subsample
from promptembedder.extras import require

if TYPE_CHECKING:
    from promptembedder.evaluation.mteb_model import TaskInstructedEncoder, model_meta, register_model
    from promptembedder.evaluation.mteb_tasks import HubTask, hub_tasks
    from promptembedder.evaluation.scoring import (
        InstructionSteering,
        TaskScore,
        instruction_pairs,
        instruction_steering,
        score_tasks,
    )

__all__ = [
    "BM25",
    "ComparedScore",
    "EncoderSystem",
    "EvaluationTask",
    "HubTask",
    "InstructedSimilarityEvaluator",
    "InstructionSteering",
    "RetrievalScore",
    "TaskInstructedEncoder",
    "TaskScore",
    "bm25_score",
    "compare_on_task",
    "hub_tasks",
    "instruction_pairs",
    "instruction_steering",
    "model_meta",
    "paraphrases_of",
    "read_tasks",
    "register_model",
    "retrieval_score",
    "score_tasks",
    "similarity_evaluator",
    "subsample",
    "vector_score",
]

_WITH_MTEB = {
    "HubTask": "mteb_tasks",
    "InstructionSteering": "scoring",
    "TaskInstructedEncoder": "mteb_model",
    "TaskScore": "scoring",
    "hub_tasks": "mteb_tasks",
    "instruction_pairs": "scoring",
    "instruction_steering": "scoring",
    "model_meta": "mteb_model",
    "register_model": "mteb_model",
    "score_tasks": "scoring",
}


def __getattr__(name: str) -> Any:
    """Import the modules that need mteb on first use. Training evaluates without mteb."""
    if name not in _WITH_MTEB:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    with preserve_rng():  # mteb seeds the generators on import
        require("mteb", extra="eval")
        return getattr(import_module(f"{__name__}.{_WITH_MTEB[name]}"), name)
