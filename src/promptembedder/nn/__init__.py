"""Parts: plain tensors in and out, no foreign model known."""

from promptembedder.nn.alignment import (
    AlignmentConfig,
    LinearAlignment,
    LinearMap,
    VocabularyAlignment,
    closed_form_map,
    norm_match,
    procrustes_map,
    random_map,
    ridge_map,
)
from promptembedder.nn.diagnostics import soft_token_diagnostics
from promptembedder.nn.identity_start import DeepAlignment, IdentityStartLinear
from promptembedder.nn.padding import left_padded, text_positions
from promptembedder.nn.pooling import POOLINGS, pooled, unit_vectors
from promptembedder.nn.relaxation import (
    RELAXATIONS,
    RelaxationConfig,
    RelaxedTokens,
    relaxation_weights,
    relaxed_token,
)
from promptembedder.nn.text_readout import TextReadout

__all__ = [
    "POOLINGS",
    "RELAXATIONS",
    "AlignmentConfig",
    "DeepAlignment",
    "IdentityStartLinear",
    "LinearAlignment",
    "LinearMap",
    "RelaxationConfig",
    "RelaxedTokens",
    "TextReadout",
    "VocabularyAlignment",
    "closed_form_map",
    "left_padded",
    "norm_match",
    "pooled",
    "procrustes_map",
    "random_map",
    "relaxation_weights",
    "relaxed_token",
    "ridge_map",
    "soft_token_diagnostics",
    "text_positions",
    "unit_vectors",
]
