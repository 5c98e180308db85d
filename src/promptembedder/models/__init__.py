"""Whole encoders, built from parts."""

from promptembedder.models.baselines import BaselineEmbedder, frozen_pooling
from promptembedder.models.checkpoint import load_parts, manifest_on, model_config, restore_parts, save_parts
from promptembedder.models.config import BaselineConfig, ModelConfig, PrompterConfig
from promptembedder.models.dual_encoder import DualEncoder
from promptembedder.models.embedder import PromptEmbedder
from promptembedder.models.encoder import Encoder
from promptembedder.models.instructed import InstructedTransformer, is_hub_id, saved_folder
from promptembedder.models.model_card import PromptEmbedderCardData
from promptembedder.models.moving import Move, MovedEncoder, moved_config, moved_encoder
from promptembedder.models.opening import OpenedModel, open_model
from promptembedder.models.parts import Alignment, Parts, fit_alignment, measured_fit, new_parts
from promptembedder.models.pooled_encoder import PooledEncoder
from promptembedder.models.prompter import Prompter
from promptembedder.models.self_check import check_self_test
from promptembedder.models.self_test import SelfTest, read_self_test
from promptembedder.models.soft_token_encoder import SoftTokenEncoder
from promptembedder.models.static_encoder import StaticEncoder
from promptembedder.models.text_encoder import TextEncoder
from promptembedder.models.text_reading import (
    MAX_BATCH_TOKENS,
    ReadingCounts,
    TextReading,
    TokenRow,
    in_order,
    token_rows,
)
from promptembedder.models.text_state_store import TextStatesConfig, TextStateStore
from promptembedder.models.trained_state import trained_state

__all__ = [
    "MAX_BATCH_TOKENS",
    "Alignment",
    "BaselineConfig",
    "BaselineEmbedder",
    "DualEncoder",
    "Encoder",
    "InstructedTransformer",
    "ModelConfig",
    "Move",
    "MovedEncoder",
    "OpenedModel",
    "Parts",
    "PooledEncoder",
    "PromptEmbedder",
    "PromptEmbedderCardData",
    "Prompter",
    "PrompterConfig",
    "ReadingCounts",
    "SelfTest",
    "SoftTokenEncoder",
    "StaticEncoder",
    "TextEncoder",
    "TextReading",
    "TextStateStore",
    "TextStatesConfig",
    "TokenRow",
    "check_self_test",
    "fit_alignment",
    "frozen_pooling",
    "in_order",
    "is_hub_id",
    "load_parts",
    "manifest_on",
    "measured_fit",
    "model_config",
    "moved_config",
    "moved_encoder",
    "new_parts",
    "open_model",
    "read_self_test",
    "restore_parts",
    "save_parts",
    "saved_folder",
    "token_rows",
    "trained_state",
]
