"""Whole encoders, built from parts."""

from promptembedder.models.baselines import FrozenPooling, frozen_pooling
from promptembedder.models.checkpoint import load_parts, restore_parts, save_parts, trained_state
from promptembedder.models.config import ModelConfig, PrompterConfig
from promptembedder.models.dual_encoder import DualEncoder
from promptembedder.models.embedder import PromptEmbedder
from promptembedder.models.encoder import Encoder
from promptembedder.models.parts import Alignment, Parts, fit_alignment, new_parts
from promptembedder.models.prompter import Prompter

__all__ = [
    "Alignment",
    "DualEncoder",
    "Encoder",
    "FrozenPooling",
    "ModelConfig",
    "Parts",
    "PromptEmbedder",
    "Prompter",
    "PrompterConfig",
    "fit_alignment",
    "frozen_pooling",
    "load_parts",
    "new_parts",
    "restore_parts",
    "save_parts",
    "trained_state",
]
