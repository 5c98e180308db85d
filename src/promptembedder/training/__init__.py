"""Training through sentence-transformers' trainer and losses."""

from promptembedder.training.data import InstructionCollator, Wordings
from promptembedder.training.monitor import HealthConfig
from promptembedder.training.losses import OwnNegativesLoss, StepwiseLoss, contrastive_loss
from promptembedder.training.monitor import JsonlMetrics
from promptembedder.training.transfer import chosen_exit_depth, move_embedder, moved_model
from promptembedder.training.distributed import Ranks, joined_ranks, leave_ranks
from promptembedder.training.recipe import ANY_COLUMNS, DataConfig, EvaluationConfig, LossConfig, OptimConfig, Recipe, RunConfig
from promptembedder.training.run import TrainingResult, new_model, prepare_output, train_model
from promptembedder.training.data import TaskData, TrainingData, load_training_data, task_data
from promptembedder.training.trainer import PromptEmbedderTrainer

__all__ = [
    "ANY_COLUMNS",
    "DataConfig",
    "EvaluationConfig",
    "HealthConfig",
    "InstructionCollator",
    "JsonlMetrics",
    "LossConfig",
    "OptimConfig",
    "OwnNegativesLoss",
    "PromptEmbedderTrainer",
    "Ranks",
    "Recipe",
    "RunConfig",
    "StepwiseLoss",
    "TaskData",
    "TrainingData",
    "TrainingResult",
    "Wordings",
    "chosen_exit_depth",
    "contrastive_loss",
    "joined_ranks",
    "leave_ranks",
    "load_training_data",
    "move_embedder",
    "moved_model",
    "new_model",
    "prepare_output",
    "task_data",
    "train_model",
]
