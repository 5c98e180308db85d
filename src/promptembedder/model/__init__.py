"""Models that users load: the SentenceTransformer, its baselines and transfer to another reader."""

import sys

import promptembedder.backbone  # noqa: F401  # first: it imports transformers without torchao's warnings
from promptembedder.method import (
    SELF_TEST_TEXT,
    DualEncoder,
    SelfTest,
    dual_encoder,
    is_hub_id,
    manifest_on,
    model_config,
    read_self_test,
    reader_records,
    restore_parts,
    save_parts,
    saved_folder,
)
from promptembedder.model.baselines import (
    BaselineConfig,
    BaselineEmbedder,
    PooledEncoder,
    StaticEncoder,
    frozen_pooling,
)
from promptembedder.model.embedder import PromptedSentenceTransformer, PromptEmbedder
from promptembedder.model.loading import (
    Encoder,
    LoadedEncoder,
    ModelIdentity,
    check_self_test,
    load_encoder,
    model_identity,
)
from promptembedder.model.model_card import PromptEmbedderCardData
from promptembedder.model.transfer import TransferConfig, transfer_config, transfer_encoder

__all__ = [
    "SELF_TEST_TEXT",
    "BaselineConfig",
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

# modules.json of a saved model names the module's path at the time of saving
sys.modules[f"{__name__}.dual_encoder"] = dual_encoder
