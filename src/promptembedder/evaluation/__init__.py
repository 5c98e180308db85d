"""How good an encoder is."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from promptembedder.evaluation.instructions import paraphrases_of
from promptembedder.evaluation.task_score import kept_random_state
from promptembedder.evaluation.retrieval import RetrievalScore, bm25_score, retrieval_score, vector_score
from promptembedder.evaluation.task_score import InstructedSimilarityEvaluator, similarity_evaluator
from promptembedder.evaluation.task_data import EvaluationTask, subsample
from promptembedder.evaluation.task_file import read_tasks
from promptembedder.evaluation.task_score import TaskScore
from promptembedder.extras import require

if TYPE_CHECKING:
    from promptembedder.evaluation.mteb_model import TaskInstructedEncoder, model_meta, register_model
    from promptembedder.evaluation.official_tasks import HubTask, hub_tasks
    from promptembedder.evaluation.scoring import score_tasks
    from promptembedder.evaluation.instructions import InstructionSteering, instruction_steering, steered_pairs

__all__ = [
    "EvaluationTask",
    "HubTask",
    "InstructedSimilarityEvaluator",
    "InstructionSteering",
    "RetrievalScore",
    "TaskInstructedEncoder",
    "TaskScore",
    "bm25_score",
    "hub_tasks",
    "instruction_steering",
    "model_meta",
    "paraphrases_of",
    "read_tasks",
    "register_model",
    "retrieval_score",
    "score_tasks",
    "similarity_evaluator",
    "steered_pairs",
    "subsample",
    "vector_score",
]

_WITH_MTEB = {
    "HubTask": "official_tasks",
    "InstructionSteering": "steering",
    "TaskInstructedEncoder": "mteb_model",
    "hub_tasks": "official_tasks",
    "instruction_steering": "steering",
    "model_meta": "mteb_model",
    "register_model": "mteb_model",
    "score_tasks": "scoring",
    "steered_pairs": "steering",
}


def __getattr__(name: str) -> Any:
    """Load what stands on mteb on first use: training evaluates without it."""
    if name not in _WITH_MTEB:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    with kept_random_state():  # mteb seeds them while it is imported
        require("mteb", extra="eval")
        return getattr(import_module(f"{__name__}.{_WITH_MTEB[name]}"), name)
