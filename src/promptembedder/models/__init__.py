"""Module paths that `modules.json` of saved models of format 3 names. New code imports `promptembedder.model`."""

import sys

from promptembedder.method import dual_encoder
from promptembedder.model import baselines

__all__: list[str] = []

sys.modules |= {
    f"{__name__}.dual_encoder": dual_encoder,
    f"{__name__}.pooled_encoder": baselines,
    f"{__name__}.static_encoder": baselines,
}
