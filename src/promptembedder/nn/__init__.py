"""Parts: plain tensors in and out, no foreign model known."""

from promptembedder.nn.alignment import LinearAlignment, VocabularyAlignment, norm_match
from promptembedder.nn.closed_form import (
    AlignmentConfig,
    AlignmentFit,
    LinearMap,
    closed_form_fit,
    closed_form_map,
    procrustes_map,
    random_map,
    ridge_map,
)
from promptembedder.nn.diagnostics import soft_token_diagnostics
from promptembedder.nn.identity_start import DeepAlignment, IdentityStartLinear
from promptembedder.nn.padding import left_padded, left_padded_rows, text_positions
from promptembedder.nn.pooling import POOLINGS, pooled, pooled_prefixes, unit_vectors
from promptembedder.nn.relaxation import (
    RELAXATIONS,
    RelaxationConfig,
    RelaxedTokens,
    joined_tokens,
    relaxation_weights,
    relaxed_token,
)
from promptembedder.nn.text_readout import TextReadout, shared_directions

__all__ = [
    "POOLINGS",
    "RELAXATIONS",
    "AlignmentConfig",
    "AlignmentFit",
    "DeepAlignment",
    "IdentityStartLinear",
    "LinearAlignment",
    "LinearMap",
    "RelaxationConfig",
    "RelaxedTokens",
    "TextReadout",
    "VocabularyAlignment",
    "closed_form_fit",
    "closed_form_map",
    "joined_tokens",
    "left_padded",
    "left_padded_rows",
    "norm_match",
    "pooled",
    "pooled_prefixes",
    "procrustes_map",
    "random_map",
    "relaxation_weights",
    "relaxed_token",
    "ridge_map",
    "shared_directions",
    "soft_token_diagnostics",
    "text_positions",
    "unit_vectors",
]
