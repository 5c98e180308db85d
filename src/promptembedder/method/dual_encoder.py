"""Dual encoder as one sentence-transformers module: prompter, alignment, frozen reader and pooling."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from promptembedder.backbone import left_pad
from promptembedder.data import clean_text
from promptembedder.errors import ConfigError, WeightsError
from promptembedder.method.checkpoint import (
    SELF_TEST_TEXT,
    SelfTest,
    load_parts,
    restore_parts,
    save_parts,
    snapshot_prompter,
)
from promptembedder.method.encoder_parts import EncoderParts
from promptembedder.method.prompter import REFERENCE_INSTRUCTIONS, Prompter, PrompterSnapshot
from promptembedder.method.relaxation import RelaxedTokens, soft_token_diagnostics
from promptembedder.method.soft_token_encoder import SoftTokenEncoder, instruction_of_each
from promptembedder.method.text_encoder import RowInstructions
from promptembedder.types import Float, Tensor

__all__ = ["DualEncoder"]


class DualEncoder(SoftTokenEncoder):
    """Trainable prompter and alignment that generate the soft tokens of a frozen reader."""

    def __init__(self, parts: EncoderParts) -> None:
        """Build the module from its parts."""
        super().__init__(parts.config, parts.reader, text_pooling=parts.text_pooling)
        self.prompter = parts.prompter
        self.alignment = parts.alignment
        self.deep = parts.deep
        self.query = parts.query
        self.prompter_snapshot, self.others = parts.prompter_snapshot, parts.others
        self.store.add_compiled(parts.compiled, self.trained_weights())

    def preprocess(
        self, inputs: Sequence[str], prompt: str | RowInstructions | None = None, **_: Any
    ) -> dict[str, Any]:
        """Tokenize the texts and add their instruction.

        Args:
            prompt: Instruction of all texts, or one of each text. If None, the default instruction.
        """
        features = self.instructed_features(inputs, prompt)
        if self.config.prompter.depends_on_text:
            texts = [clean_text(text) for text in inputs]
            ids, mask = self._prompter_inputs(instruction_of_each(features, len(texts)), texts)
            features |= {"prompter_ids": ids, "prompter_mask": mask}
        return features

    def save(self, output_path: str, *_: Any, **__: Any) -> None:
        """Write the trained weights, the compiled soft tokens, a self-test and the manifest, but never a backbone."""
        save_parts(Path(output_path), self.parts(), self_test=self.self_test())

    @torch.no_grad()
    def self_test(self, instruction: str | None = None) -> SelfTest | None:
        """Compute the embedding of `SELF_TEST_TEXT`, or return None if it cannot be computed now.

        Args:
            instruction: If None, a compiled or cached instruction, or the default one.
        """
        if self.reading.single_batch:  # all processes must call a sharded reader equally often
            return None
        stored = next(iter({**self.store.valid_compiled(self.trained_weights()), **self._cached_tokens()}), None)
        chosen = instruction or stored or self.config.default_instruction
        if self.prompter is None and chosen != stored and instruction is None:
            return None
        was_training = self.training
        self.eval()
        try:
            vector = self.forward(self._on_device(self.preprocess([SELF_TEST_TEXT], prompt=chosen)))[
                "sentence_embedding"
            ]
        except WeightsError:  # not finite: loading the model reports the reason
            return None
        finally:
            self.train(was_training)
        ref = self.reader.identity
        numbers = tuple(vector[0].float().cpu().tolist())
        return SelfTest(instruction=chosen, reader=ref.fingerprint, dtype=ref.quantization or ref.dtype, vector=numbers)

    def restore(self, folder: Path) -> None:
        """Copy the trained weights of a saved model into this module in place, without loading its backbones."""
        restore_parts(self.parts(), folder)

    @classmethod
    def from_folder(cls, folder: Path, *, cache_folder: Path | None = None) -> "DualEncoder":
        """Load the module that `save` wrote."""
        return cls(load_parts(folder, cache_folder=cache_folder))

    def parts(self) -> EncoderParts:
        """Return the current parts. Compiled soft tokens are included only if they match the current weights."""
        return EncoderParts(
            config=self.config,
            reader=self.reader,
            alignment=self.alignment,
            deep=self.deep,
            text_pooling=self.text_pooling,
            query=self.query,
            prompter=self.prompter,
            compiled=self.store.valid_compiled(self.trained_weights()),
            prompter_snapshot=self.prompter_snapshot,
            others=self.others,
        )

    def compile_instructions(self, instructions: Sequence[str]) -> None:
        """Compile the soft tokens of these instructions, which are then saved and served without the prompter."""
        was_training = self.training
        self.eval()
        with torch.no_grad():
            rows = self.soft_tokens(instructions).cpu()
        self.train(was_training)
        named = [self.instruction_of(instruction) for instruction in instructions]
        self.store.add_compiled(dict(zip(named, rows, strict=True)), self.trained_weights())

    def generate(self, instructions: Sequence[str]) -> Float[Tensor, "instructions prompt width"]:
        """Generate the soft tokens of each instruction with the prompter."""
        if self.config.prompter.depends_on_text:
            raise ConfigError("soft tokens depend on the text here: prompter.template contains {text}.")
        cached = self._cached_tokens()
        if cached and cached.keys() >= set(instructions):
            return self._aligned(RelaxedTokens.cat([cached[instruction] for instruction in instructions], self.device))
        ids, mask = self._prompter_inputs(instructions, None)
        return self._soft_tokens_from(ids.to(self.device), mask.to(self.device))

    @torch.no_grad()
    def generate_relaxed(self, instructions: Sequence[str], *, weights: bool = False) -> list[RelaxedTokens]:
        """Generate the relaxed tokens of each instruction in the prompter's input space, without gradient.

        Args:
            weights: Include the weights over the vocabulary, which alignment `vocabulary` needs.
        """
        if self.prompter is None:
            return [self._cached_tokens()[instruction] for instruction in instructions]
        was_training = self.training
        self.eval()
        ids, mask = self._prompter_inputs(instructions, None)
        tokens = self.prompter(*left_pad(ids.to(self.device), mask.to(self.device)))
        self.train(was_training)
        return (tokens if weights else dataclasses.replace(tokens, weights=None)).rows()

    @torch.no_grad()
    def diagnose(self, instructions: Sequence[str] = REFERENCE_INSTRUCTIONS) -> dict[str, float]:
        """Compute the diagnostics of the soft tokens of reference instructions, see `soft_token_diagnostics`.

        An `instruction_cosine` near 1 and an `instruction_variance` near 0 show a prompter that has become a constant.

        Raises:
            ConfigError: If the model was loaded without its prompter.
        """
        if self.prompter is None:
            raise ConfigError("the diagnostics need the prompter. Load the model with it.")
        was_training = self.training
        self.eval()
        tokens = RelaxedTokens.cat(self.generate_relaxed(instructions, weights=True), self.device)
        inputs = self.alignment(tokens, self.reader.input_embeddings)
        self.train(was_training)
        return soft_token_diagnostics(tokens, inputs, mean_embedding_norm=self.reader.mean_embedding_norm)

    def generate_for_texts(self, features: dict[str, Any]) -> Float[Tensor, "batch prompt width"]:
        """Generate the soft tokens of each text under its instruction."""
        return self._soft_tokens_from(features["prompter_ids"], features["prompter_mask"])

    def align(self, tokens: RelaxedTokens) -> Float[Tensor, "batch prompt width"]:
        """Map relaxed tokens of the prompter to soft tokens of the reader and their query, float32."""
        inputs = self.alignment(tokens, self.reader.input_embeddings)
        further = [part(tokens) for part in (self.deep, self.query) if part is not None]
        return torch.cat([inputs, *further], dim=-1)

    def snapshot_prompter(self, instructions: Sequence[str], *, weights: bool = False) -> PrompterSnapshot:
        """Return the prompter's trained weights and its relaxed tokens for these instructions.

        Args:
            weights: As in `generate_relaxed`.
        """
        assert self.prompter is not None
        named = list(dict.fromkeys(map(self.instruction_of, instructions)))
        tokens = self.generate_relaxed(named, weights=weights)
        return dataclasses.replace(snapshot_prompter(self.prompter), tokens=dict(zip(named, tokens, strict=True)))

    def offload_prompter(self, instructions: Sequence[str]) -> None:
        """Drop the prompter from memory and cache its relaxed tokens for these instructions."""
        self.prompter_snapshot, self.prompter = self.snapshot_prompter(instructions), None
        self.store.clear()

    def compact_alignments_(self) -> None:
        """Reduce the saved size of the trained alignments, in place.

        The delta of a linear alignment is merged into its base, unless a fixed offset is mapped by the base alone. Deep
        alignments are rounded to bfloat16.
        """
        compiled = self.store.valid_compiled(self.trained_weights())
        if not self.config.prompter.has_fixed_offset:
            self.alignment.merge_delta_()
        if self.deep is None:
            self.store.add_compiled(compiled, self.trained_weights())
        else:
            self.deep.round_to_bfloat16_()  # invalidates the compiled soft tokens: the weights changed

    def update_state_statistics(self) -> None:
        """Compute the statistics of the prompter's states again, if it standardises them."""
        if self.prompter is not None and self.config.prompter.has_fixed_offset:
            self.prompter.fit_state_statistics()
            self.store.clear()

    def attach_prompter(self, prompter: Prompter | None) -> None:
        """Attach the prompter that `offload_prompter` dropped, and generate with it again."""
        self.prompter, self.prompter_snapshot = prompter, None
        self.store.clear()

    def _on_device(self, features: dict[str, Any]) -> dict[str, Any]:
        return {name: one.to(self.device) if isinstance(one, Tensor) else one for name, one in features.items()}

    def _cached_tokens(self) -> Mapping[str, RelaxedTokens]:
        """Return the cached relaxed tokens of an offloaded prompter by instruction."""
        return self.prompter_snapshot.tokens if self.prompter is None and self.prompter_snapshot is not None else {}

    def _soft_tokens_from(self, ids: Tensor, mask: Tensor) -> Float[Tensor, "batch prompt width"]:
        if self.prompter is None:
            raise ConfigError(
                "this instruction is not compiled and the model was loaded without its prompter. "
                "Load it with the prompter, or compile the instruction first."
            )
        return self._aligned(self.prompter(*left_pad(ids, mask)))

    def _aligned(self, tokens: RelaxedTokens) -> Float[Tensor, "batch prompt width"]:
        soft = self.align(tokens)
        if self.training:
            inputs = soft[..., : self.reader.dim]
            self.diagnostics = soft_token_diagnostics(
                tokens, inputs, mean_embedding_norm=self.reader.mean_embedding_norm
            )
        return soft

    def _prompter_inputs(self, instructions: Sequence[str], texts: Sequence[str] | None) -> tuple[Tensor, Tensor]:
        """Return the prompter's input ids and attention mask for each instruction (and text)."""
        if self.prompter is None:
            raise ConfigError(
                f"instruction {instructions[0]!r} is not compiled and the model was loaded without its prompter. "
                "Load it with the prompter, or compile the instruction first."
            )
        return self.prompter.tokenize(instructions, texts, max_seq_length=self.max_seq_length)
