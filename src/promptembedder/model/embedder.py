"""The model that users touch: a SentenceTransformer whose prompt is the instruction."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from promptembedder.backbone import BackboneConfig
from promptembedder.data import check_text_list, clean_text
from promptembedder.errors import ConfigError
from promptembedder.method import ModelConfig, PrompterConfig, build_parts, early_exit_layer
from promptembedder.model.checkpoint import load_parts
from promptembedder.model.dual_encoder import DualEncoder
from promptembedder.model.model_card import PromptEmbedderCardData
from promptembedder.model.prompted_transformer import PromptedSentenceTransformer, saved_folder
from promptembedder.types import Float, Tensor

__all__ = ["PromptEmbedder"]

_TOKENIZED_TEXTS = 1024  # at once, before they are put into batches


class PromptEmbedder(PromptedSentenceTransformer):
    """A frozen LLM that embeds texts under instructions.

    Everything a SentenceTransformer does works: `encode(texts, prompt=instruction)`, `prompts`, `encode_query`,
    `encode_document`, its trainer, losses, evaluators and hub methods. A text without an instruction gets the
    configuration's default one.
    """

    model_card_data_class = PromptEmbedderCardData

    @classmethod
    def create(
        cls,
        *,
        prompter: str | None = None,
        reader: str | None = None,
        config: ModelConfig | None = None,
        cache_folder: Path | None = None,
        device: str | None = None,
        seed: int = 0,
    ) -> "PromptEmbedder":
        """An untrained model.

        Args:
            prompter: Backbone string; stands for `ModelConfig(prompter=PrompterConfig(backbone=...))`.
            reader: Backbone string; the prompter's backbone if None.
            config: The whole configuration, instead of the two names.
            cache_folder: Where converted GGUF backbones are kept.
            seed: Of the adapters' random start.

        Raises:
            ConfigError: Both names and a configuration are given.
            BackboneError: A backbone cannot be loaded.
        """
        if config is None:
            source = prompter or "smollm2-135m"
            config = ModelConfig(
                prompter=PrompterConfig(backbone=BackboneConfig(source=source, dtype="float32")),
                reader=BackboneConfig(source=reader or source),
            )
        elif prompter is not None or reader is not None:
            raise ConfigError("give either prompter and reader or config, not both. Name the backbones in config.")
        return cls(modules=[DualEncoder(build_parts(config, cache_folder=cache_folder, seed=seed))], device=device)

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        *,
        revision: str | None = None,
        reader: str | None = None,
        quantization: str | None = None,
        with_prompter: bool = True,
        cache_folder: Path | None = None,
        device: str | None = None,
    ) -> "PromptEmbedder":
        """A saved model, from a folder or a hub id; the backbone comes from its own source.

        Args:
            reader: Which of the LLMs that it was moved to, as its backbone string; None: the one it was saved with.
            quantization: `int8` keeps the reader's weights in a quarter of float32's memory; None as it was trained.
            with_prompter: False serves compiled instructions only, without loading the Prompting LLM.

        Raises:
            ModelFormatError: The folder is torn, of a newer format, has no such reader, or a backbone's weights have
                changed.
            BackboneError: The backbone is missing.
        """
        folder = saved_folder(name, revision=revision)
        parts = load_parts(
            folder, reader=reader, quantization=quantization, cache_folder=cache_folder, with_prompter=with_prompter
        )
        model = cls(modules=[DualEncoder(parts)], device=device)
        model.restore_config(folder)
        return model.eval()  # in training mode compiled soft tokens would be dropped, and they may be all there is

    @property
    def encoder(self) -> DualEncoder:
        """The one module: prompter, alignment, reader and pooling."""
        module = self[0]
        assert isinstance(module, DualEncoder)
        return module

    def soft_tokens(self, instruction: str) -> Float[Tensor, "prompt width"]:
        """Soft tokens of one instruction, float32: in the reader's input space, width = dim_r.

        With `deep_prompt_interval` set, what is added at the deeper layers follows, width = levels * dim_r.
        """
        self.eval()
        with torch.no_grad():
            return self.encoder.soft_tokens([instruction])[0]

    def compile_instructions(self, instructions: Sequence[str]) -> None:
        """Keep the soft tokens of these instructions: saved with the model, served without the prompter."""
        self.encoder.compile_instructions(list(dict.fromkeys(check_text_list(instructions, name="instructions"))))

    def fit_whitening(self, texts: Sequence[str], *, batch_size: int = 32) -> None:
        """Take from some texts, without labels, what all texts share, so that embeddings leave it out.

        A few hundred texts of the kind that will be embedded are enough. Training from a recipe does this first.

        Raises:
            ConfigError: The model has no text text_pooling (`text_pooling_weight` 0), or there are fewer than two
                texts.
        """
        self.encoder.fit_whitening(check_text_list(texts, name="texts"), batch_size=batch_size)

    @property
    def max_batch_tokens(self) -> int:
        """Tokens of texts read at once, padding included: what bounds memory, whatever `batch_size` is.

        Where a GPU has no memory for them, half of them are read at once, and a warning says so.
        """
        return self.encoder.reading.max_batch_tokens

    @max_batch_tokens.setter
    def max_batch_tokens(self, value: int) -> None:
        self.encoder.reading.max_batch_tokens = value

    @property
    def early_exit_fraction(self) -> float:
        """Share of the reader's layers that a text goes through; may be changed at any time, and is saved.

        Raises:
            ConfigError: It is not in (0, 1], or the text's own states are taken deeper, or soft tokens come first.
        """
        return self.encoder.config.early_exit_fraction

    @early_exit_fraction.setter
    def early_exit_fraction(self, value: float) -> None:
        config = dataclasses.replace(self.encoder.config, early_exit_fraction=value)
        early_exit_layer(config, self.encoder.reader)
        self.encoder.config = config

    @property
    def readers(self) -> tuple[str, ...]:
        """The LLMs that a saved copy of this model can be opened on, the present one first."""
        return (self.encoder.reader.identity.source, *(str(side.identity["source"]) for side in self.encoder.others))

    def encode_instructions(
        self,
        texts: Sequence[str],
        instructions: Sequence[str],
        *,
        batch_size: int | None = None,
        on_texts: Callable[[int], None] = lambda _: None,
    ) -> Float[np.ndarray, "instructions texts dim"]:
        """Each text under each instruction from one pass over the texts, float32.

        Args:
            batch_size: Texts read at once at most; None: as many as `max_batch_tokens` allows.
            on_texts: Called after each batch with the number of its texts.

        Raises:
            ConfigError: Texts are not read independently of the instruction (prefix, instruction_and_text), or one is
                longer than `max_batch_tokens`.
            DataError: A text or an instruction is no string, or one string stands for a list.
        """
        texts = [clean_text(text) for text in check_text_list(texts, name="texts")]
        instructions = check_text_list(instructions, name="instructions")
        encoder = self.encoder.eval()
        if not encoder.reads_text_once:
            raise ConfigError("one pass for many instructions needs placement 'suffix' and conditioning 'instruction'.")
        vectors = np.zeros((len(instructions), len(texts), encoder.reader.dim), dtype=np.float32)
        if not instructions:
            return vectors
        # longest first: what does not fit into memory fails at once, and the time left is never underrated
        by_length = sorted(range(len(texts)), key=lambda row: -len(texts[row]))
        with torch.inference_mode():
            soft = encoder.soft_tokens(instructions)
            for start in range(0, len(texts), _TOKENIZED_TEXTS):
                rows = by_length[start : start + _TOKENIZED_TEXTS]
                chunk = encoder.embed_under_each(
                    [texts[row] for row in rows], soft, max_texts=batch_size, on_texts=on_texts
                )
                vectors[:, rows] = chunk.cpu().numpy()
        return vectors
