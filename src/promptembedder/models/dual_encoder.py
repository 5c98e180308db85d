"""The dual model as one sentence-transformers module: prompter, alignment, frozen reader and pooling."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from sentence_transformers.base.modules import InputModule
from torch import nn

from promptembedder.backbones import TextStates, joined_states, read_after, read_embeddings, read_text
from promptembedder.data import clean_text
from promptembedder.errors import ConfigError
from promptembedder.models.checkpoint import load_parts, save_parts, trained_state
from promptembedder.models.parts import Parts
from promptembedder.models.soft_token_store import SoftTokenStore
from promptembedder.nn import (
    RelaxedTokens,
    VocabularyAlignment,
    left_padded,
    pooled,
    soft_token_diagnostics,
    unit_vectors,
)
from promptembedder.shapes import Float, Int, Tensor

__all__ = ["DualEncoder"]

logger = logging.getLogger(__name__)

_MAX_TEMPLATE_TOKENS = 256  # instruction and template, on top of the text's own limit


class DualEncoder(InputModule):
    """Text and instruction in, unit vector out.

    Prompter and alignment are trained, the reader never is. One module and not a chain of them, because
    sentence-transformers casts later modules to the first one's dtype.
    """

    def __init__(self, parts: Parts) -> None:
        """Put the parts together."""
        super().__init__()
        config, reader = parts.config, parts.reader
        self.settings = config
        self.prompter = parts.prompter
        self.alignment = parts.alignment
        self.reader = reader
        self.store = SoftTokenStore()
        self.truncated_texts = 0
        self.diagnostics: dict[str, float] = {}
        self.store.add_compiled(parts.compiled, self.trained_weights())
        room = self._text_room()
        if room is not None and room < 1:
            raise ConfigError(
                f"num_soft_tokens must be at most {config.num_soft_tokens + room - 1} for this reader, "
                f"got {config.num_soft_tokens}: its positions end there."
            )
        self._max_seq_length = config.max_seq_length if room is None else min(config.max_seq_length, room)

    # -- what sentence-transformers asks of an input module ---------------------------------------------------------

    @property
    def tokenizer(self) -> Any:
        """The reader's own tokenizer."""
        return self.reader.tokenizer.foreign

    @property
    def max_seq_length(self) -> int:
        """Tokens of a text that are read; soft tokens come on top."""
        return self._max_seq_length

    @max_seq_length.setter
    def max_seq_length(self, value: int) -> None:
        room = self._text_room()
        if value < 1 or (room is not None and value > room):
            raise ConfigError(f"max_seq_length must be between 1 and {room or 'any length'}, got {value}.")
        self._max_seq_length = value

    def get_embedding_dimension(self) -> int:
        """Width of the embedding: the reader's."""
        return self.reader.dim

    def preprocess(self, inputs: Sequence[str], prompt: str | None = None, **_: Any) -> dict[str, Any]:
        """Token ids of the texts, and the instruction they are read under (`prompt`, or the default).

        Texts longer than `max_seq_length` lose their end; `truncated_texts` counts them and a warning tells.
        """
        texts = [clean_text(text) for text in inputs]
        batch = self.reader.tokenizer.tokenize(texts, max_length=self.max_seq_length)
        self._count_truncated(batch.truncated)
        instruction = self._instruction(prompt)
        features: dict[str, Any] = {
            "input_ids": batch.ids,
            "attention_mask": batch.mask,
            "instruction": instruction,
        }
        if self.settings.conditioning == "instruction_and_text":
            rows = self._prompter_inputs([instruction] * len(texts), texts)
            features |= {"prompter_ids": rows[0], "prompter_mask": rows[1]}
        return features

    def forward(self, features: dict[str, Any], **_: Any) -> dict[str, Any]:
        """Add `sentence_embedding`, [batch dim_r], float32 and of length 1.

        Raises:
            ValueError: A weight or state is not finite (evaluation only: a trainer has its own check).
        """
        if "sentence_embedding" in features:  # embedded together with the batch's other columns already
            return features
        ids, mask = left_padded(features["input_ids"], features["attention_mask"])
        soft = self._soft_tokens_of_batch(features, len(ids))
        if self.settings.placement == "suffix":
            embedding = self.embed_after(read_text(self.reader.decoder, ids, mask), soft)
        else:
            embedding = self._embed_before(ids, mask, soft)
        return {**features, "sentence_embedding": embedding}

    def save(self, output_path: str, *_: Any, **__: Any) -> None:
        """Write the trained weights, the compiled soft tokens and the manifest; never a backbone."""
        save_parts(Path(output_path), self.parts())

    @classmethod
    def load(cls, model_name_or_path: str, subfolder: str = "", **kwargs: Any) -> "DualEncoder":
        """The module that `save` wrote; what sentence-transformers calls. The foreign keyword arguments are its own."""
        folder = Path(model_name_or_path)
        if not folder.is_dir():
            folder = Path(
                snapshot_download(
                    model_name_or_path,
                    revision=kwargs.get("revision"),
                    cache_dir=kwargs.get("cache_folder"),
                    token=kwargs.get("token"),
                    local_files_only=bool(kwargs.get("local_files_only")),
                )
            )
        return cls(load_parts(folder / subfolder)).eval()

    def parts(self) -> Parts:
        """The parts as they are now; compiled soft tokens only as far as they fit the weights."""
        return Parts(
            config=self.settings,
            reader=self.reader,
            alignment=self.alignment,
            prompter=self.prompter,
            compiled=self.store.compiled_for(self.trained_weights()),
        )

    def compile_instructions(self, instructions: Sequence[str]) -> None:
        """Keep the soft tokens of these instructions: saved with the model, served without the prompter."""
        was_training = self.training
        self.eval()
        with torch.no_grad():
            rows = self.soft_tokens(instructions).cpu()
        self.train(was_training)
        named = [self._instruction(instruction) for instruction in instructions]
        self.store.add_compiled(dict(zip(named, rows, strict=True)), self.trained_weights())

    def embed_columns(self, columns: Sequence[dict[str, Any]]) -> None:
        """Add `sentence_embedding` to the features of all columns of a batch, in one pass over their soft tokens.

        The same vectors as one by one. Each text is still read at its own column's length; the prompter reads all
        distinct instructions at once. With K queries a text, one wide pass beats one small pass a column.
        """
        if self.settings.placement != "suffix" or self.settings.conditioning != "instruction":
            for features in columns:
                features |= self.forward(features)
            return
        instructions = [features["instruction"] for features in columns]
        soft = self.soft_tokens(instructions)
        states = [
            read_text(self.reader.decoder, *left_padded(features["input_ids"], features["attention_mask"]))
            for features in columns
        ]
        sizes = [len(part.mask) for part in states]
        repeats = torch.tensor(sizes, device=soft.device)
        embedding = self.embed_after(joined_states(states), soft.repeat_interleave(repeats, dim=0))
        for features, rows in zip(columns, embedding.split(sizes), strict=True):
            features["sentence_embedding"] = rows

    # -- the method --------------------------------------------------------------------------------------------------

    def soft_tokens(self, instructions: Sequence[str]) -> Float[Tensor, "instructions prompt dim_r"]:
        """Soft tokens of each instruction in the reader's input space; generated once for each state of the weights.

        Raises:
            ConfigError: An instruction is not compiled and there is no prompter to generate it.
        """
        named = [self._instruction(instruction) for instruction in instructions]
        return self.store.get(named, self._generate, self.trained_weights(), training=self.training, device=self.device)

    def embed_after(
        self, states: TextStates, soft: Float[Tensor, "batch prompt dim_r"]
    ) -> Float[Tensor, "batch dim_r"]:
        """Suffix placement: unit vectors from texts already read and soft tokens that follow them.

        Raises:
            ValueError: A weight or state is not finite (evaluation only: a trainer has its own check).
        """
        after = read_after(self.reader.decoder, states, soft)
        everywhere = torch.ones(after.shape[:2], dtype=torch.long, device=after.device)
        return self._finite(unit_vectors(pooled(after, everywhere, pooling=self.settings.pooling)))

    def _embed_before(
        self, ids: Int[Tensor, "batch seq"], mask: Int[Tensor, "batch seq"], soft: Float[Tensor, "batch prompt dim_r"]
    ) -> Float[Tensor, "batch dim_r"]:
        """Prefix placement: soft tokens, then the text, pooled over the text; gradients run through all of it."""
        text = self.reader.model.get_input_embeddings()(ids)
        own = mask.new_ones(soft.shape[:2])
        inputs, present = torch.cat([soft.to(text.dtype), text], dim=1), torch.cat([own, mask], dim=1)
        # an empty text is represented by the soft tokens alone
        over = torch.cat([own * (mask.sum(dim=1, keepdim=True) == 0), mask], dim=1)
        # [padding, soft, text]: a sliding window counts columns, so none may lie between soft tokens and text
        order = present.argsort(dim=1, stable=True)
        inputs = inputs.gather(1, order.unsqueeze(-1).expand_as(inputs))
        states = read_embeddings(self.reader.decoder, inputs, present.gather(1, order))
        return self._finite(unit_vectors(pooled(states, over.gather(1, order), pooling=self.settings.pooling)))

    def _finite(self, embedding: Float[Tensor, "batch dim_r"]) -> Float[Tensor, "batch dim_r"]:
        if not self.training and not bool(torch.isfinite(embedding).all()):
            raise ValueError("the embedding is not finite: the weights hold NaN or inf. Load an earlier checkpoint.")
        return embedding

    def _instruction(self, prompt: str | None) -> str:
        """The instruction that `prompt` stands for: without blanks around it, the default one if nothing is left."""
        return (clean_text(prompt).strip() if prompt else "") or self.settings.default_instruction

    def _text_room(self) -> int | None:
        """Positions that soft tokens leave for a text; None where nothing limits them."""
        limit = self.reader.max_positions
        return None if limit is None else limit - self.settings.num_soft_tokens

    def _soft_tokens_of_batch(self, features: dict[str, Any], batch: int) -> Float[Tensor, "batch prompt dim_r"]:
        if self.settings.conditioning == "instruction_and_text":
            return self._soft_tokens_from(features["prompter_ids"], features["prompter_mask"])
        return self.soft_tokens([features["instruction"]]).expand(batch, -1, -1)

    def _generate(self, instructions: Sequence[str]) -> Float[Tensor, "instructions prompt dim_r"]:
        if self.settings.conditioning == "instruction_and_text":
            raise ConfigError("soft tokens depend on the text here: conditioning is 'instruction_and_text'.")
        ids, mask = self._prompter_inputs(instructions, None)
        return self._soft_tokens_from(ids.to(self.device), mask.to(self.device))

    def _soft_tokens_from(self, ids: Tensor, mask: Tensor) -> Float[Tensor, "batch prompt dim_r"]:
        if self.prompter is None:
            raise ConfigError(
                "this instruction is not compiled and the model was loaded without its prompter. "
                "Load it with the prompter, or compile the instruction first."
            )
        tokens = self.prompter(*left_padded(ids, mask))
        soft = self.align(tokens)
        if self.training:
            self.diagnostics = soft_token_diagnostics(tokens, soft, table_norm=self.reader.table_norm)
        return soft

    def align(self, tokens: RelaxedTokens) -> Float[Tensor, "batch prompt dim_r"]:
        """Relaxed tokens of the prompter as soft tokens of the reader, float32."""
        if isinstance(self.alignment, VocabularyAlignment):
            return self.alignment(tokens, self.reader.input_table)
        return self.alignment(tokens)

    def _prompter_inputs(self, instructions: Sequence[str], texts: Sequence[str] | None) -> tuple[Tensor, Tensor]:
        """Ids and mask of what the prompter reads for each instruction (and text)."""
        if self.prompter is None:
            raise ConfigError(
                f"instruction {instructions[0]!r} is not compiled and the model was loaded without its prompter. "
                "Load it with the prompter, or compile the instruction first."
            )
        template = self.settings.prompter.template
        asked = [template.replace("{instruction}", instruction) for instruction in instructions]
        tokenizer, limit = self.prompter.backbone.tokenizer, self.prompter.backbone.max_positions
        room = self.max_seq_length + _MAX_TEMPLATE_TOKENS if limit is None else limit - self.settings.num_soft_tokens
        if texts is None:
            batch = tokenizer.tokenize(asked, max_length=room)
        else:
            batch = tokenizer.tokenize(texts, max_length=room, tails=[f"\n\n{question}" for question in asked])
        return batch.ids, batch.mask

    # -- copies ------------------------------------------------------------------------------------------------------

    def __getstate__(self) -> dict[str, Any]:
        """For copies and other processes: compiled soft tokens only as far as they fit the weights."""
        self.store.compiled = self.store.compiled_for(self.trained_weights())
        return self.__dict__

    def __setstate__(self, state: dict[str, Any]) -> None:
        """A copy's weights count their changes anew; what came with them fits them."""
        super().__setstate__(state)
        self.store.add_compiled({}, self.trained_weights())

    # -- weights -----------------------------------------------------------------------------------------------------

    @property
    def device(self) -> torch.device:
        """Where the reader is."""
        return self.reader.input_table.device

    def trained_weights(self) -> list[nn.Parameter]:
        """Everything that training changes, in a fixed order."""
        return list(trained_state(self).values())

    def _count_truncated(self, count: int) -> None:
        before, self.truncated_texts = self.truncated_texts, self.truncated_texts + count
        # once, and again each time the count doubles: told, but not once a batch
        if count and self.truncated_texts.bit_length() > before.bit_length():
            logger.warning(
                "%d texts so far were longer than %d tokens and lost their end; raise max_seq_length to keep it",
                self.truncated_texts,
                self.max_seq_length,
            )
