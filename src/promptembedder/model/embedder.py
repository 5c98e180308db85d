"""Public model class: a SentenceTransformer with the instruction as its prompt."""

import dataclasses
import json
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from tqdm.auto import tqdm

from promptembedder.backbone import BackboneConfig
from promptembedder.data import check_text_list, clean_text
from promptembedder.errors import ConfigError, DataError, ModelFormatError, first_line
from promptembedder.method import (
    DualEncoder,
    ModelConfig,
    PrompterConfig,
    RowInstructions,
    TextEncoder,
    build_parts,
    early_exit_layer,
    load_parts,
    saved_folder,
)
from promptembedder.model.model_card import PromptEmbedderCardData
from promptembedder.storage import atomic_directory, hash_files, resolve_file
from promptembedder.types import Float, Tensor

__all__ = ["PromptEmbedder", "PromptedSentenceTransformer"]

_logger = logging.getLogger(__name__)

_MIN_WHITENING_TEXTS = 100  # fewer change the vectors of all other texts at random
_TOKENIZED_TEXTS = 1024  # texts tokenized at once, before batching


class PromptedSentenceTransformer(SentenceTransformer):
    """SentenceTransformer with one `TextEncoder` as its only module."""

    @property
    def text_encoder(self) -> TextEncoder:
        """The only module."""
        module = self[0]
        assert isinstance(module, TextEncoder)
        return module

    def is_singular_input(self, inputs: Any) -> bool:
        """Return True for one text. Any other iterable is a batch, such as a pandas Series.

        The parent class takes only lists, tuples and arrays for batches.
        """
        return isinstance(inputs, str | bytes | Mapping) or not isinstance(inputs, Iterable)

    def preprocess(
        self, inputs: Sequence[str], prompt: str | RowInstructions | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        """Return the features of the texts under the instruction `prompt`, or each under its own.

        Overridden because the parent class prepends the prompt to the text if a module raises TypeError.
        """
        return self.text_encoder.preprocess(inputs, prompt=prompt, **kwargs)

    def forward(self, input: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        """Add `sentence_embedding` to the features, or to those of all columns of a batch for {"columns": [...]}.

        With all columns in one call, a wrapper that counts forward passes (DDP) counts one per step. Features that
        already contain a `sentence_embedding` are returned unchanged.
        """
        if "columns" in input:
            self.text_encoder.embed_columns(input["columns"])
            return input
        return input if "sentence_embedding" in input else super().forward(input, **kwargs)

    def save(self, path: str, *args: Any, **kwargs: Any) -> None:
        """Save atomically in the format of SentenceTransformer. Backbones are referenced, not copied."""
        with atomic_directory(Path(path)) as scratch:
            super().save(str(scratch), *args, **kwargs)
            hash_files(scratch)

    def restore_config(self, folder: Path) -> None:
        """Restore the model card and the configuration of sentence-transformers, such as its prompts.

        Raises:
            ModelFormatError: If a file is damaged, or if it is a link to a path outside of the folder.
        """
        card = folder / "README.md"
        if card.is_file():  # keep the card for the next save: only it describes the training
            card = resolve_file(folder, card.name)  # not hashed: a link may point to any file
            self._model_card_text = card.read_text(encoding="utf-8", errors="replace")
        path = folder / "config_sentence_transformers.json"
        if not path.is_file():
            return
        path = resolve_file(folder, path.name)
        # the parent class replaces only prompts that are None, not empty ones
        for name in self.prompts:
            self.prompts[name] = None
        try:
            self._parse_model_config(json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, AttributeError) as error:
            raise ModelFormatError(
                f"{path} is damaged: {first_line(error)}. Save or download the model again."
            ) from error
        self._validate_prompts()


class PromptEmbedder(PromptedSentenceTransformer):
    """Frozen LLM that embeds texts under instructions.

    It supports the whole interface of SentenceTransformer: `encode(texts, prompt=instruction)`, `prompts`,
    `encode_query`, `encode_document`, its trainer, losses, evaluators and hub methods. A text without an instruction
    gets the default instruction of the configuration.
    """

    model_card_data_class = PromptEmbedderCardData

    def __init__(self, model_name_or_path: str | Path | None = None, **kwargs: Any) -> None:
        """Load a saved model as `from_pretrained` does, or build one from `modules`.

        Args:
            model_name_or_path: Folder or hub id of a saved model. If None, the keyword argument `modules` is needed.
            **kwargs: Arguments of SentenceTransformer.

        Raises:
            ModelFormatError: As in `from_pretrained`.
            BackboneError: As in `from_pretrained`.
        """
        if model_name_or_path is None:
            super().__init__(**kwargs)
            return
        folder = saved_folder(model_name_or_path, revision=kwargs.get("revision"))
        super().__init__(modules=[DualEncoder(load_parts(folder))], **kwargs)
        self.restore_config(folder)
        self.prompts |= kwargs.get("prompts") or {}
        self.eval()  # training mode drops compiled soft tokens, possibly the only ones

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
        """Build an untrained model.

        Args:
            prompter: Backbone string, short for `ModelConfig(prompter=PrompterConfig(backbone=...))`.
            reader: Backbone string. If None, the prompter's backbone.
            config: Whole configuration, instead of the two backbone strings.
            cache_folder: Folder for converted GGUF backbones.
            seed: Seed of the adapter initialization.

        Raises:
            ConfigError: If both backbone strings and a configuration are given.
            BackboneError: If a backbone cannot be loaded.
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
    def from_pretrained(  # noqa: PLR0913 - the arguments of SentenceTransformer among them
        cls,
        name: str | Path,
        *,
        revision: str | None = None,
        reader: str | None = None,
        quantization: str | None = None,
        with_prompter: bool = True,
        truncate_dim: int | None = None,
        prompts: Mapping[str, str] | None = None,
        cache_folder: Path | None = None,
        device: str | None = None,
    ) -> "PromptEmbedder":
        """Load a saved model from a folder or hub id, and its backbones from their own sources.

        Args:
            reader: Backbone string of an LLM that the model was transferred to. If None, the one it was saved with.
            quantization: `int8` stores the reader's weights in a quarter of the memory of float32. If None, as in
                training.
            with_prompter: If False, serve compiled instructions only, without loading the Prompting LLM.
            truncate_dim: Number of dimensions to truncate embeddings to. If None, as the model was saved.
            prompts: Instructions by name, such as `query` and `document`. They are added to the saved ones.
            cache_folder: Folder for converted GGUF backbones. If None, `assets/promptembedder` below `HF_HOME`.

        Raises:
            ConfigError: If `truncate_dim` is not between 1 and the dimension of the reader.
            ModelFormatError: If the folder is incomplete, has a newer format or has no such reader, or if the weights
                of a backbone have changed.
            BackboneError: If a backbone is missing.
        """
        folder = saved_folder(name, revision=revision)
        parts = load_parts(
            folder, reader=reader, quantization=quantization, cache_folder=cache_folder, with_prompter=with_prompter
        )
        if truncate_dim is not None and not 1 <= truncate_dim <= parts.reader.dim:
            raise ConfigError(f"truncate_dim must be between 1 and {parts.reader.dim}, got {truncate_dim}.")
        model = cls(modules=[DualEncoder(parts)], device=device, truncate_dim=truncate_dim)
        model.restore_config(folder)
        model.prompts.update(prompts or {})
        return model.eval()  # training mode drops compiled soft tokens, possibly the only ones

    def half(self) -> "PromptEmbedder":
        """Refuse to convert the trained parts, which need float32."""
        return self.to(torch.float16)

    def bfloat16(self) -> "PromptEmbedder":
        """Refuse to convert the trained parts, which need float32."""
        return self.to(torch.bfloat16)

    def to(self, *args: Any, **kwargs: Any) -> "PromptEmbedder":
        """Move the model to a device.

        Raises:
            ConfigError: If a dtype is given. The trained parts need float32, each LLM has its own dtype.
        """
        dtype = next((value for value in (*args, *kwargs.values()) if isinstance(value, torch.dtype)), None)
        if dtype is not None:
            raise ConfigError(
                f"a model cannot be converted to {dtype}: its trained parts need float32. Set the dtype of its LLM, "
                "BackboneConfig(dtype='float16'), or load the model with quantization='int8'."
            )
        return super().to(*args, **kwargs)

    @property
    def encoder(self) -> DualEncoder:
        """The only module: prompter, alignment, reader and pooling."""
        module = self[0]
        assert isinstance(module, DualEncoder)
        return module

    def soft_tokens(self, instruction: str) -> Float[Tensor, "prompt width"]:
        """Return the soft tokens of one instruction in the reader's input space, float32, width = dim_r.

        With `deep_prompt_interval` set, the additions to deeper layers follow, width = levels * dim_r.
        """
        self.eval()
        with torch.no_grad():
            return self.encoder.soft_tokens([instruction])[0]

    def compile_instructions(self, instructions: Sequence[str]) -> None:
        """Compile the soft tokens of these instructions, which are then saved and served without the prompter."""
        distinct = list(dict.fromkeys(check_text_list(instructions, name="instructions")))
        if distinct:
            self.encoder.compile_instructions(distinct)

    def fit_whitening(self, texts: Sequence[str], *, batch_size: int = 32) -> None:
        """Fit the whitening of text pooling on unlabelled texts, to remove what all texts have in common.

        A few hundred texts of the kind to be embedded are enough. Training from a recipe fits the whitening to its own
        texts. Fitting it again changes all vectors, which the log warns of.

        Raises:
            ConfigError: If the model has no text pooling (`text_pooling_weight` 0).
            DataError: If there are fewer than 100 distinct texts, blank ones not counted.
        """
        texts = [clean_text(text) for text in check_text_list(texts, name="texts")]
        pooling = self.encoder.text_pooling
        distinct = {text.strip() for text in texts} - {""}
        if pooling is not None and len(distinct) < _MIN_WHITENING_TEXTS:
            raise DataError(
                f"whitening needs at least {_MIN_WHITENING_TEXTS} distinct texts, got {len(distinct)}. Give a few "
                "hundred texts of the kind to be embedded."
            )
        if pooling is not None and bool(pooling.shared.any()):
            _logger.warning(
                "the whitening was fitted before and is replaced: all vectors change, and existing tables and shards "
                "no longer fit the model"
            )
        self.encoder.fit_whitening(texts, batch_size=batch_size)

    @property
    def max_batch_tokens(self) -> int:
        """Maximum number of text tokens of a forward pass, padding included. It limits memory for any `batch_size`.

        If a GPU runs out of memory, the limit is halved with a warning.
        """
        return self.encoder.reading.max_batch_tokens

    @max_batch_tokens.setter
    def max_batch_tokens(self, value: int) -> None:
        self.encoder.reading.max_batch_tokens = value

    @property
    def early_exit_fraction(self) -> float:
        """Fraction of the reader's layers that texts run through. It can be changed at any time and is saved.

        Raises:
            ConfigError: If the fraction is not in (0, 1], if text pooling needs a deeper layer, or if soft tokens
                precede the text.
        """
        return self.encoder.config.early_exit_fraction

    @early_exit_fraction.setter
    def early_exit_fraction(self, value: float) -> None:
        config = dataclasses.replace(self.encoder.config, early_exit_fraction=value)
        early_exit_layer(config, self.encoder.reader)
        self.encoder.config = config

    @property
    def readers(self) -> tuple[str, ...]:
        """Backbone strings of the LLMs that a saved copy of this model can be loaded with, the current one first."""
        return (self.encoder.reader.identity.source, *(str(side.identity["source"]) for side in self.encoder.others))

    @overload
    def encode_instructions(
        self,
        texts: Sequence[str],
        instructions: Sequence[str],
        *,
        batch_size: int | None = None,
        show_progress_bar: bool = False,
        convert_to_tensor: Literal[False] = False,
        on_texts: Callable[[int], None] = ...,
    ) -> Float[np.ndarray, "instructions texts dim"]: ...

    @overload
    def encode_instructions(
        self,
        texts: Sequence[str],
        instructions: Sequence[str],
        *,
        batch_size: int | None = None,
        show_progress_bar: bool = False,
        convert_to_tensor: Literal[True],
        on_texts: Callable[[int], None] = ...,
    ) -> Float[Tensor, "instructions texts dim"]: ...

    def encode_instructions(
        self,
        texts: Sequence[str],
        instructions: Sequence[str],
        *,
        batch_size: int | None = None,
        show_progress_bar: bool = False,
        convert_to_tensor: bool = False,
        on_texts: Callable[[int], None] = lambda _: None,
    ) -> Float[np.ndarray, "instructions texts dim"] | Float[Tensor, "instructions texts dim"]:
        """Embed each text under each instruction with one prefill of the texts, float32.

        As in `encode`, the embeddings are truncated to `truncate_dim`.

        Args:
            batch_size: Maximum number of texts of a batch. If None, only `max_batch_tokens` limits a batch.
            show_progress_bar: Show a bar of the texts on stderr.
            convert_to_tensor: Return a tensor on the device of the model instead of an array.
            on_texts: Called after each batch with its number of texts.

        Raises:
            ConfigError: If placement is `prefix`, the soft tokens depend on the text, or a text is
                longer than `max_batch_tokens`.
            DataError: If a text or instruction is not a string, or if a single string is given instead of a list.
        """
        texts = [clean_text(text) for text in check_text_list(texts, name="texts")]
        instructions = check_text_list(instructions, name="instructions")
        encoder = self.encoder.eval()
        if not encoder.reads_text_once:
            raise ConfigError(
                "one pass for many instructions needs placement 'suffix' and a prompter.template without {text}."
            )
        device = encoder.device if convert_to_tensor else torch.device("cpu")
        dim = self.get_embedding_dimension()
        vectors = torch.zeros((len(instructions), len(texts), dim), device=device)
        # longest first: lack of memory fails early, and the remaining time is not underestimated
        by_length = sorted(range(len(texts)), key=lambda row: -len(texts[row])) if instructions else []
        with torch.inference_mode(), tqdm(total=len(texts), unit=" texts", disable=not show_progress_bar) as bar:

            def advance(count: int) -> None:
                bar.update(count)
                on_texts(count)

            soft = encoder.soft_tokens(instructions) if by_length else None
            for start in range(0, len(by_length), _TOKENIZED_TEXTS):
                rows = by_length[start : start + _TOKENIZED_TEXTS]
                chunk = encoder.embed_under_each(
                    [texts[row] for row in rows], soft, max_texts=batch_size, on_texts=advance
                )
                vectors[:, rows] = chunk[..., :dim].to(device)
        return vectors if convert_to_tensor else vectors.numpy()
