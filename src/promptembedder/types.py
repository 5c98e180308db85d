"""Tensor types and the names of their axes.

batch          rows of one forward pass
texts, docs    items of the caller's list
seq            text tokens, padding included
prompt         soft tokens (K)
dim            width: dim_p of the prompter's input space, dim_r of the reader's
vocab          entries of a vocabulary table
heads, layers  of a backbone
"""

from jaxtyping import Bool, Float, Int
from torch import Tensor

__all__ = ["Bool", "Float", "Int", "Tensor"]
