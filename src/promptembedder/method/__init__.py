"""The method of the paper: relaxation, prompter, alignment, pooling and the encoders built from them."""

from promptembedder.method.alignment import AlignmentConfig, AlignmentFit, DeepAlignment, IdentityStartLinear, LinearAlignment, LinearMap, VocabularyAlignment, closed_form_fit, closed_form_map, norm_match, procrustes_map, random_map, ridge_map
from promptembedder.method.config import BaselineConfig, ModelConfig, PrompterConfig
from promptembedder.method.encoder_parts import ReaderSide, Alignment, Parts, PrompterAway, fit_alignment, level_count, measured_fit, new_deep_alignment, new_head, new_parts, new_prompter
from promptembedder.method.pooling import POOLINGS, TextReadout, pooled, shared_directions, unit_vectors
from promptembedder.method.prompter import Prompter, add_lora
from promptembedder.method.relaxation import RELAXATIONS, RelaxationConfig, RelaxedTokens, joined_tokens, relaxation_weights, relaxed_token, soft_token_diagnostics
from promptembedder.method.soft_token_encoder import SoftTokenEncoder
from promptembedder.method.text_encoder import MAX_TEMPLATE_TOKENS, TextEncoder, restore_tensors, saved_state, trained_state
from promptembedder.method.text_pooling import exit_layer, new_text_readout, own_tokens, readout_layers

__all__ = ['ReaderSide', 'Alignment', 'AlignmentConfig', 'AlignmentFit', 'BaselineConfig', 'DeepAlignment', 'IdentityStartLinear', 'LinearAlignment', 'LinearMap', 'MAX_TEMPLATE_TOKENS', 'ModelConfig', 'POOLINGS', 'Parts', 'Prompter', 'PrompterAway', 'PrompterConfig', 'RELAXATIONS', 'RelaxationConfig', 'RelaxedTokens', 'SoftTokenEncoder', 'TextEncoder', 'TextReadout', 'VocabularyAlignment', 'add_lora', 'closed_form_fit', 'closed_form_map', 'exit_layer', 'fit_alignment', 'joined_tokens', 'level_count', 'measured_fit', 'new_deep_alignment', 'new_head', 'new_parts', 'new_prompter', 'new_text_readout', 'norm_match', 'own_tokens', 'pooled', 'procrustes_map', 'random_map', 'readout_layers', 'relaxation_weights', 'relaxed_token', 'restore_tensors', 'ridge_map', 'saved_state', 'shared_directions', 'soft_token_diagnostics', 'trained_state', 'unit_vectors']
