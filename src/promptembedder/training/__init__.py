"""Training with sentence-transformers' trainer and losses, and transfer to another reader."""

import promptembedder.backbone  # noqa: F401  # first: it imports transformers without torchao's warnings
from promptembedder.training.checkpoints import prepare_output
from promptembedder.training.data import (
    InstructionCollator,
    InstructionVariants,
    TaskData,
    TrainingData,
    build_task_data,
    load_training_data,
)
from promptembedder.training.distributed import Ranks, destroy_distributed, init_distributed
from promptembedder.training.losses import (
    ExplicitNegativesLoss,
    InstructionContrastiveLoss,
    StepwiseLoss,
    build_contrastive_loss,
)
from promptembedder.training.monitor import JsonlMetrics, MonitorConfig
from promptembedder.training.recipe import (
    ANY_COLUMNS,
    DataConfig,
    EvaluationConfig,
    InstructionPoolingConfig,
    LossConfig,
    OptimConfig,
    Recipe,
    RunConfig,
)
from promptembedder.training.run import TrainingResult, new_model, train_model
from promptembedder.training.trainer import PromptEmbedderTrainer
from promptembedder.training.transfer import build_transferred_model, choose_early_exit_fraction, transfer_to

__all__ = [
    "ANY_COLUMNS",
    "DataConfig",
    "EvaluationConfig",
    "ExplicitNegativesLoss",
    "InstructionCollator",
    "InstructionContrastiveLoss",
    "InstructionPoolingConfig",
    "InstructionVariants",
    "JsonlMetrics",
    "LossConfig",
    "MonitorConfig",
    "OptimConfig",
    "PromptEmbedderTrainer",
    "Ranks",
    "Recipe",
    "RunConfig",
    "StepwiseLoss",
    "TaskData",
    "TrainingData",
    "TrainingResult",
    "build_contrastive_loss",
    "build_task_data",
    "build_transferred_model",
    "choose_early_exit_fraction",
    "destroy_distributed",
    "init_distributed",
    "load_training_data",
    "new_model",
    "prepare_output",
    "train_model",
    "transfer_to",
]
