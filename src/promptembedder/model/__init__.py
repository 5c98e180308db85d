"""Models that users load: the SentenceTransformer, its baselines, checkpoints and transfer to another reader."""

from promptembedder.model.baselines import BaselineEmbedder, PooledEncoder, StaticEncoder, frozen_pooling
from promptembedder.model.checkpoint import manifest_on, model_config, restore_parts, save_parts
from promptembedder.model.dual_encoder import DualEncoder
from promptembedder.model.embedder import PromptEmbedder
from promptembedder.model.loading import OpenedModel, check_self_test, open_model
from promptembedder.model.model_card import PromptEmbedderCardData
from promptembedder.model.prompted_transformer import Encoder, InstructedTransformer, is_hub_id, saved_folder
from promptembedder.model.reader_state import entries_of
from promptembedder.model.self_test import SELF_TEST_TEXT, SelfTest, read_self_test
from promptembedder.model.transfer import Move, moved_config, moved_encoder

__all__ = ['BaselineEmbedder', 'DualEncoder', 'Encoder', 'InstructedTransformer', 'Move', 'OpenedModel', 'PooledEncoder', 'PromptEmbedder', 'PromptEmbedderCardData', 'SELF_TEST_TEXT', 'SelfTest', 'StaticEncoder', 'check_self_test', 'entries_of', 'frozen_pooling', 'is_hub_id', 'manifest_on', 'model_config', 'moved_config', 'moved_encoder', 'open_model', 'read_self_test', 'restore_parts', 'save_parts', 'saved_folder']
