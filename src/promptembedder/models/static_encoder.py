"""Static soft tokens: free vectors for each instruction seen in training, in the same place as generated ones."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from promptembedder.backbones import Backbone, read_text
from promptembedder.errors import ConfigError
from promptembedder.models.baseline_checkpoint import load_baseline, restore_baseline, save_baseline
from promptembedder.models.config import BaselineConfig, ModelConfig
from promptembedder.models.parts import level_count, new_head
from promptembedder.models.soft_token_encoder import SoftTokenEncoder
from promptembedder.models.text_encoder import MAX_TEMPLATE_TOKENS
from promptembedder.models.text_readout import new_text_readout
from promptembedder.nn import pooled, unit_vectors
from promptembedder.shapes import Float, Tensor

__all__ = ["StaticEncoder"]


class StaticEncoder(SoftTokenEncoder):
    """K free vectors for each task, trained like a soft prompt (Lester et al. 2021, arXiv:2104.08691); no prompter.

    They start as the words of the prompter's anchor, as the generated tokens do.
    """

    def __init__(self, settings: ModelConfig, baseline: BaselineConfig, reader: Backbone) -> None:
        """Read with `reader`; the default instruction gets a set of its own unless a task names it."""
        super().__init__(settings, reader, readout=new_text_readout(settings, reader), head=new_head(settings, reader))
        if settings.placement != "suffix" or settings.conditioning != "instruction":
            raise ConfigError("static soft tokens know placement 'suffix' and conditioning 'instruction' only.")
        self._default = self.instruction_of(settings.default_instruction)
        if not any(self._default in map(self.instruction_of, one) for one in baseline.wordings):
            baseline = dataclasses.replace(baseline, wordings=(*baseline.wordings, (self._default,)))
        self.baseline = baseline
        shared = baseline.fallback == "shared"
        self._set_of = {  # by what `preprocess` makes of a wording, which data may give with blanks around it
            self.instruction_of(wording): 0 if shared else place
            for place, one in enumerate(baseline.wordings)
            for wording in one
        }
        count = 1 if shared else len(baseline.wordings)
        start = reader.phrase_inputs(settings.prompter.anchor, settings.num_soft_tokens)
        deeper = start.new_zeros(len(start), (level_count(settings, reader) - 1) * reader.dim)
        self.vectors = nn.Parameter(torch.cat([start, deeper], dim=-1).repeat(count, 1, 1))

    def preprocess(self, inputs: Sequence[str], prompt: str | None = None, **_: Any) -> dict[str, Any]:
        """Token ids of the texts, and the instruction they are read under (`prompt`, or the default)."""
        return self.instructed_features(inputs, prompt)

    def generate(self, instructions: Sequence[str]) -> Float[Tensor, "instructions prompt width"]:
        """The vectors of each instruction, or of the one that stands in for it."""
        return self.vectors[[self.set_of(instruction) for instruction in instructions]]

    def generate_for_texts(self, features: dict[str, Any]) -> Float[Tensor, "batch prompt width"]:
        """Refuse: static tokens do not depend on the text."""
        raise ConfigError("static soft tokens do not depend on the text. Set conditioning to 'instruction'.")

    def set_of(self, instruction: str) -> int:
        """Number of the set of vectors that serves `instruction`."""
        known = self._set_of.get(self.instruction_of(instruction))
        if known is not None:
            return known
        if self.baseline.fallback == "nearest":
            return self._set_of[self.nearest(instruction)]
        return 0 if self.baseline.fallback == "shared" else self._set_of[self._default]

    def use_fallback(self, fallback: str) -> None:
        """Serve unseen instructions another way; between `nearest` and `default`, which share their weights.

        Raises:
            ConfigError: It is one of the two ways that share no weights with the present one.
        """
        if "shared" in (fallback, self.baseline.fallback) and fallback != self.baseline.fallback:
            raise ConfigError("fallback 'shared' has weights of its own. Train a model with it.")
        self.baseline = dataclasses.replace(self.baseline, fallback=fallback)
        self.store.forget()

    def nearest(self, instruction: str) -> str:
        """The seen wording that the frozen reader finds most like `instruction`."""
        seen = list(self._set_of)
        limit = min(MAX_TEMPLATE_TOKENS, self.reader.max_positions or MAX_TEMPLATE_TOKENS)
        batch = self.reader.tokenizer.tokenize([instruction, *seen], max_length=limit)
        states = read_text(self.reader.decoder, batch.ids.to(self.device), batch.mask.to(self.device))
        vectors = unit_vectors(pooled(states.hidden, batch.text_mask.to(self.device), pooling="mean"))
        # a decoder's mean states share one large direction, which says nothing about the words
        vectors = unit_vectors(vectors - vectors.mean(dim=0))
        return seen[int((vectors[1:] @ vectors[0]).argmax())]

    def save(self, output_path: str, *_: Any, **__: Any) -> None:
        """Write the vectors and the manifest; never the backbone."""
        save_baseline(Path(output_path), self, self.settings, self.baseline)

    @classmethod
    def from_folder(cls, folder: Path, *, cache_folder: Path | None = None) -> "StaticEncoder":
        """The module that `save` wrote."""
        return load_baseline(folder, cls, cache_folder=cache_folder)

    def restore(self, folder: Path) -> None:
        """Copy the vectors of a saved model into this one, in place."""
        restore_baseline(self, folder)
