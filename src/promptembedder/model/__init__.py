"""Models that users load: the SentenceTransformer, its baselines, checkpoints and transfer to another reader."""

import promptembedder.backbone  # noqa: F401  # first: it imports transformers without torchao's warnings
from promptembedder.model.baselines import BaselineEmbedder, PooledEncoder, StaticEncoder, frozen_pooling
from promptembedder.model.checkpoint import manifest_on, model_config, restore_parts, save_parts
from promptembedder.model.dual_encoder import DualEncoder
from promptembedder.model.embedder import PromptEmbedder
from promptembedder.model.loading import LoadedEncoder, check_self_test, load_encoder
from promptembedder.model.model_card import PromptEmbedderCardData
from promptembedder.model.model_identity import ModelIdentity, model_identity
from promptembedder.model.prompted_transformer import Encoder, PromptedSentenceTransformer, is_hub_id, saved_folder
from promptembedder.model.reader_state import reader_records
from promptembedder.model.self_test import SELF_TEST_TEXT, SelfTest, read_self_test
from promptembedder.model.transfer import TransferConfig, transfer_config, transfer_encoder

__all__ = [
    "SELF_TEST_TEXT",
    "BaselineEmbedder",
    "DualEncoder",
    "Encoder",
    "LoadedEncoder",
    "ModelIdentity",
    "PooledEncoder",
    "PromptEmbedder",
    "PromptEmbedderCardData",
    "PromptedSentenceTransformer",
    "SelfTest",
    "StaticEncoder",
    "TransferConfig",
    "check_self_test",
    "frozen_pooling",
    "is_hub_id",
    "load_encoder",
    "manifest_on",
    "model_config",
    "model_identity",
    "read_self_test",
    "reader_records",
    "restore_parts",
    "save_parts",
    "saved_folder",
    "transfer_config",
    "transfer_encoder",
]
