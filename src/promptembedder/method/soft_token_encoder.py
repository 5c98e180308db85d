"""Base class of encoders that run soft tokens on top of a text in a frozen reader."""

import dataclasses
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from promptembedder.backbone import (
    Backbone,
    StoredKV,
    TextCache,
    TextCacheStore,
    TokenBudgetBatcher,
    TokenIds,
    bucket_width,
    forward_embeddings,
    forward_suffix,
    forward_suffixes,
    forward_with_suffix,
    gather_text_caches,
    hidden_states_at,
    left_pad,
    left_pad_ids,
    prefill,
    restore_order,
    supports_packing,
    unpad,
)
from promptembedder.data import clean_instruction, clean_text
from promptembedder.errors import ConfigError
from promptembedder.method.config import ModelConfig, early_exit_layer, num_prompt_layers, text_pooling_layer
from promptembedder.method.pooling import (
    TextSummary,
    WhitenedTextPooling,
    content_mask,
    l2_normalize,
    pool,
    pool_prefixes,
)
from promptembedder.method.soft_token_cache import SoftTokenStore
from promptembedder.method.text_encoder import RowInstructions, TextEncoder
from promptembedder.types import Float, Int, Tensor

__all__ = ["SoftTokenEncoder", "instruction_of_each"]

# Larger batches make no matrix product faster, and their activations exceed what the allocator reuses.
_PACKED_ON_CPU = 2048
_FIT_TOKENS = 20_000  # tokens that the instruction pooling is fitted to


class SoftTokenEncoder(TextEncoder):
    """Encoder of texts under an instruction. Subclasses generate the soft tokens.

    The soft tokens of one instruction have shape [prompt, levels * dim_r]: the first dim_r numbers of each are its
    input vector in the reader, the others are added to its hidden state at the input of each deeper layer
    (`config.deep_prompt_interval`). With `config.instruction_heads`, the query of the instruction follows, distributed
    over its soft tokens.

    Attributes:
        reading: Batcher of the texts and its counters.
        text_cache: Store of KV caches from one epoch of training to the next. If None, nothing is stored.
        return_prefix_embeddings: In training with suffix placement, also add `step_embeddings`, [batch prompt dim_r]:
            the embedding after one soft token, after two, and so on. The last one is `sentence_embedding`.
    """

    def __init__(
        self,
        config: ModelConfig,
        reader: Backbone,
        *,
        text_pooling: WhitenedTextPooling | None,
    ) -> None:
        """Build an encoder on a frozen `reader`, which may be shared.

        Args:
            text_pooling: Adds the text's whitened mean state to the pooled state in evaluation. If None, it does not.
        """
        super().__init__(reader, max_seq_length=config.max_seq_length, positions_taken=config.num_soft_tokens)
        if config.placement == "suffix":
            early_exit_layer(config, reader)  # raises now rather than at the first text
        self.config = config
        self.store = SoftTokenStore()
        self.text_pooling = text_pooling
        self.reading = TokenBudgetBatcher(self._width_for, packed_tokens=self.packed_tokens)
        self.text_cache: TextCacheStore | None = None
        self._cached_states: dict[TokenIds, Tensor] = {}  # hidden states of the tokens, beside `text_cache`
        self.return_prefix_embeddings = False

    @abstractmethod
    def generate(self, instructions: Sequence[str]) -> Float[Tensor, "instructions prompt width"]:
        """Generate the soft tokens of each instruction, with gradient to the trained weights."""

    @abstractmethod
    def generate_for_texts(self, features: dict[str, Any]) -> Float[Tensor, "batch prompt width"]:
        """Generate the soft tokens of each text of a batch if `config.prompter.depends_on_text`."""

    # -- interface of a sentence-transformers input module -----------------------------------------------------------

    def instructed_features(self, inputs: Sequence[str], prompt: str | RowInstructions | None) -> dict[str, Any]:
        """Return the token ids of the texts and their instruction: `prompt`, or the default, or one of each text."""
        if isinstance(prompt, RowInstructions):
            return {**self.token_features(inputs), "instruction": [self.instruction_of(one) for one in prompt]}
        return {**self.token_features(inputs), "instruction": self.instruction_of(prompt)}

    def forward(self, features: dict[str, Any], **_: Any) -> dict[str, Any]:
        """Add `sentence_embedding`, [batch dim_r], float32 and of length 1.

        Raises:
            WeightsError: If a weight or state is not finite, in evaluation mode.
        """
        soft = self.soft_tokens_of_batch(features, len(features["input_ids"]))
        if self.config.placement == "suffix":
            embedded = self._embedded(self.read([features]), soft) if self.training else self._encoded(features, soft)
            return {**features, **embedded}
        ids, mask = left_pad(features["input_ids"], features["attention_mask"])
        self.reading.count(mask.sum(dim=1).tolist(), width=mask.shape[1])
        return {**features, "sentence_embedding": self._embed_before(ids, mask, soft)}

    def embed_columns(self, columns: Sequence[dict[str, Any]]) -> None:
        """Add `sentence_embedding` to the features of all columns of a batch, in one pass over their soft tokens.

        The vectors equal those of one column at a time. Each distinct text is prefilled once, whatever its
        instruction, and the prompter processes all distinct instructions in one batch.
        """
        if not self.reads_text_once or not self.training:
            for features in columns:
                features |= self.forward(features)
            return
        sizes = [len(features["input_ids"]) for features in columns]
        each = zip(columns, sizes, strict=True)
        instructions = [one for features, size in each for one in instruction_of_each(features, size)]
        soft = self._soft_tokens_of_each(instructions)
        embedded = self._embedded(self.read(columns), soft)
        for name, embeddings in embedded.items():
            for features, rows in zip(columns, embeddings.split(sizes), strict=True):
                features[name] = rows

    # -- the method --------------------------------------------------------------------------------------------------

    def instruction_of(self, prompt: str | None) -> str:
        """Return `prompt` without surrounding whitespace, or the default instruction if nothing is left."""
        return clean_instruction(prompt) or self.config.default_instruction

    def soft_tokens(self, instructions: Sequence[str]) -> Float[Tensor, "instructions prompt width"]:
        """Return the soft tokens of each instruction in the reader's space, generated once per state of the weights.

        Raises:
            ConfigError: If an instruction is not compiled and there is no prompter to generate its soft tokens.
        """
        named = [self.instruction_of(instruction) for instruction in instructions]
        return self.store.get(named, self.generate, self.trained_weights(), training=self.training, device=self.device)

    def soft_tokens_of_batch(self, features: dict[str, Any], batch: int) -> Float[Tensor, "batch prompt width"]:
        """Return the soft tokens of each row of a batch that has one instruction."""
        if self.config.prompter.depends_on_text:
            return self.generate_for_texts(features)
        return self._soft_tokens_of_each(instruction_of_each(features, batch))

    def _soft_tokens_of_each(self, instructions: Sequence[str]) -> Float[Tensor, "batch prompt width"]:
        """Return the soft tokens of each instruction, generated in one batch of the distinct ones."""
        distinct = list(dict.fromkeys(instructions))
        soft = self.soft_tokens(distinct)
        if len(distinct) == 1:
            return soft.expand(len(instructions), -1, -1)
        number = {instruction: row for row, instruction in enumerate(distinct)}
        return soft[[number[instruction] for instruction in instructions]]

    @property
    def reads_text_once(self) -> bool:
        """True if the KV cache of a text is the same under every instruction."""
        return self.config.placement == "suffix" and not self.config.prompter.depends_on_text

    def read(self, columns: Sequence[dict[str, Any]]) -> TextCache:
        """Prefill the texts of all columns for `embed_after` in training, without gradient.

        Each distinct text is prefilled once, batched with texts of similar length, or taken from the text cache.
        Rows of the result follow the columns, one below the other.
        """
        texts = [row for features in columns for row in unpad(features)]
        distinct = list(dict.fromkeys(texts))
        held, packed, new = ([], [], distinct) if self.text_cache is None else self._cached_texts(distinct)

        def read(places: list[int]) -> TextCache:
            rows = [new[place] for place in places]
            states = self.read_rows(rows)
            if self.text_cache is not None:
                self.text_cache.add(rows, states)
            if self._pools_text:
                lengths = map(len, rows)
                kept = [hidden[len(hidden) - n :].cpu() for hidden, n in zip(states.hidden, lengths, strict=True)]
                self._cached_states |= zip(rows, kept, strict=True)
            return dataclasses.replace(states, hidden=states.hidden[..., :0])  # kept by text, or unused from here on

        batches, parts = self.reading.map_batches(new, read, supports_packing=True)
        rows = [[new[place] for place in batch] for batch in batches]
        if held:
            assert self.text_cache is not None
            parts.append(self.text_cache.states(packed, device=self.device))
            rows.append(held)
        if self.text_cache is not None:
            self.diagnostics["texts_held"] = len(held) / len(distinct)
        place_of = {row: (part, place) for part, batch in enumerate(rows) for place, row in enumerate(batch)}
        gathered = gather_text_caches(parts, [place_of[text] for text in texts])
        if not self._pools_text:
            return gathered
        states = [self._cached_states[text] for text in texts]
        hidden = states[0].new_zeros(len(texts), gathered.mask.shape[1], states[0].shape[-1])
        for row, own in zip(hidden, states, strict=True):
            row[len(row) - len(own) :] = own
        for text in new:  # of use only beside cached KV, and bounded by its limits
            if self.text_cache is None or text not in self.text_cache:
                self._cached_states.pop(text, None)
        return dataclasses.replace(gathered, hidden=hidden.to(self.device))

    def _cached_texts(self, texts: Sequence[TokenIds]) -> tuple[list[TokenIds], list[StoredKV], list[TokenIds]]:
        """Split texts into stored ones, their KV, and missing ones: those whose hidden states are missing, too."""
        assert self.text_cache is not None
        held, packed, new = self.text_cache.split(texts)
        if self._pools_text:
            whole = [text in self._cached_states for text in held]
            new += [text for text, known in zip(held, whole, strict=True) if not known]
            packed = [kv for kv, known in zip(packed, whole, strict=True) if known]
            held = [text for text, known in zip(held, whole, strict=True) if known]
        return held, packed, new

    def embed_under_each(
        self,
        texts: Sequence[str],
        soft: Float[Tensor, "instructions prompt width"],
        *,
        max_texts: int | None = None,
        on_texts: Callable[[int], None] = lambda _: None,
    ) -> Float[Tensor, "instructions texts dim_r"]:
        """Embed texts under each of several instructions, in batches of similar length. Suffix placement only.

        Args:
            max_texts: Maximum number of texts per batch. If None, the token budget alone decides.
            on_texts: Called after each batch with the number of its texts.
        """
        rows = unpad(self.token_features(texts))

        def embed(places: list[int]) -> Tensor:
            own = [rows[place] for place in places]
            if len(soft) == 1:
                vectors = self.embed_token_ids(own, soft.expand(len(own), -1, -1)).unsqueeze(0)
            else:
                vectors = self.embed_cached(self.read_rows(own), soft)
            on_texts(len(places))
            return vectors

        batches, parts = self.reading.map_batches(rows, embed, max_texts=max_texts, supports_packing=len(soft) == 1)
        return restore_order(batches, parts, dim=1)

    def _encoded(self, features: dict[str, Any], soft: Float[Tensor, "batch prompt width"]) -> dict[str, Tensor]:
        """Embed a batch in evaluation, in smaller batches of which one at a time has its activations in memory."""
        texts = unpad(features)
        rows = list(zip(texts, instruction_of_each(features, len(texts)), strict=True))
        first = {row: place for place, row in reversed(list(enumerate(rows)))}
        distinct = list(first)

        def embed(places: list[int]) -> Tensor:
            own = [distinct[place] for place in places]
            return self.embed_token_ids([text for text, _ in own], soft[[first[row] for row in own]])

        batches, parts = self.reading.map_batches([text for text, _ in distinct], embed, supports_packing=True)
        number = {row: i for i, row in enumerate(distinct)}
        return {"sentence_embedding": restore_order(batches, parts, dim=0)[[number[row] for row in rows]]}

    def read_rows(self, texts: Sequence[TokenIds]) -> TextCache:
        """Prefill a batch of texts, given as token ids, without gradient."""
        ids, mask = self._padded(texts)
        layers = text_pooling_layer(self.config, self.reader) if self._pools_text else None
        last = early_exit_layer(self.config, self.reader)
        return prefill(self.reader.decoder, ids, mask, hidden_layers=layers, early_exit_layer=last)

    def _padded(self, texts: Sequence[TokenIds]) -> tuple[Int[Tensor, "batch seq"], Int[Tensor, "batch seq"]]:
        return left_pad_ids(texts, device=self.device, width=self._width_for(max(map(len, texts), default=0)))

    def _width_for(self, longest: int) -> int:
        """Return the padded width of a batch: one of few values where each new width costs memory permanently."""
        if self.device.type != "cpu" or self.reader.decoder.dtype.itemsize != 2:
            return longest
        return bucket_width(longest + self.config.num_soft_tokens) - self.config.num_soft_tokens

    def packed_tokens(self) -> int | None:
        """Return the best number of tokens of an unpadded batch, or None if the reader needs padding."""
        if not supports_packing(self.reader.decoder):
            return None
        return _PACKED_ON_CPU if self.device.type == "cpu" else self.reading.max_batch_tokens

    def embed_token_ids(
        self, texts: Sequence[TokenIds], soft: Float[Tensor, "batch prompt width"]
    ) -> Float[Tensor, "batch dim_r"]:
        """Embed texts given as token ids, each under its own soft tokens. Suffix placement only."""
        if torch.is_grad_enabled() or self.training:
            return self.embed_after(self.read_rows(texts), soft)
        ids, mask = self._padded(texts)
        inputs, additions, query = self.split_by_layer(soft)
        after, hidden = forward_with_suffix(
            self.reader.decoder,
            ids,
            mask,
            inputs,
            additions,
            hidden_layers=text_pooling_layer(self.config, self.reader),
            early_exit_layer=early_exit_layer(self.config, self.reader),
        )
        return self._pool_and_normalize(after, self._summarise_text(TextCache((), (), mask, hidden)), query)

    def embed_after(self, states: TextCache, soft: Float[Tensor, "batch prompt width"]) -> Float[Tensor, "batch dim_r"]:
        """Embed prefilled texts with the soft tokens that follow them. Suffix placement only.

        Raises:
            WeightsError: If a weight or state is not finite, in evaluation mode.
        """
        _, _, query = self.split_by_layer(soft)
        return self._pool_and_normalize(self._states_after(states, soft), self._summarise_text(states), query)

    def embed_cached(
        self, states: TextCache, soft: Float[Tensor, "instructions prompt width"]
    ) -> Float[Tensor, "instructions batch dim_r"]:
        """Embed every prefilled text under each of several instructions in one pass. Suffix placement only.

        Raises:
            WeightsError: If a weight or state is not finite, in evaluation mode.
        """
        inputs, additions, queries = self.split_by_layer(soft)
        after = forward_suffixes(self.reader.decoder, states, inputs, additions)
        text = self._summarise_text(states)
        rows = [None] * len(after) if queries is None else queries.split(1)
        return torch.stack([self._pool_and_normalize(one, text, row) for one, row in zip(after, rows, strict=True)])

    def _summarise_text(self, states: TextCache) -> TextSummary | None:
        """Return what the text pooling computes of the texts, or None if it is off."""
        if not self._pools_text:
            return None
        assert self.text_pooling is not None
        return self.text_pooling.summarise(states.hidden, content_mask(states.mask, self.reader))

    @property
    def _pools_text(self) -> bool:
        """True if the text's mean state is added now.

        States that are the same under every instruction are added in evaluation only: in training they would replace
        part of what the soft tokens learn (docs/results.md).
        """
        return self.text_pooling is not None and (not self.training or self.config.instruction_heads > 0)

    def _pool_and_normalize(
        self,
        after: Float[Tensor, "batch prompt dim_r"],
        text: TextSummary | None,
        query: Float[Tensor, "rows width"] | None = None,
    ) -> Float[Tensor, "batch dim_r"]:
        everywhere = torch.ones(after.shape[:2], dtype=torch.long, device=after.device)
        summary = pool(after, everywhere, pooling=self.config.pooling)
        if text is not None:
            assert self.text_pooling is not None
            summary = self.text_pooling(summary, text, query)
        return self.check_finite(l2_normalize(summary))

    def prefix_embeddings(
        self, states: TextCache, soft: Float[Tensor, "batch prompt width"]
    ) -> Float[Tensor, "batch prompt dim_r"]:
        """Return the embeddings after one soft token, after two, and so on, without text pooling.

        The states of a causal reader do not depend on later soft tokens, so all of them cost one pass.
        """
        return l2_normalize(pool_prefixes(self._states_after(states, soft), pooling=self.config.pooling))

    def _embedded(self, states: TextCache, soft: Float[Tensor, "batch prompt width"]) -> dict[str, Tensor]:
        if not (self.return_prefix_embeddings and self.training):
            return {"sentence_embedding": self.embed_after(states, soft)}
        steps = self.prefix_embeddings(states, soft)
        return {"sentence_embedding": steps[:, -1], "step_embeddings": steps}

    def _states_after(
        self, states: TextCache, soft: Float[Tensor, "batch prompt width"]
    ) -> Float[Tensor, "batch prompt dim_r"]:
        inputs, additions, _ = self.split_by_layer(soft)
        return forward_suffix(self.reader.decoder, states, inputs, additions)

    def split_by_layer(
        self, soft: Float[Tensor, "rows prompt width"]
    ) -> tuple[
        Float[Tensor, "rows prompt dim_r"],
        dict[int, Float[Tensor, "rows prompt dim_r"]],
        Float[Tensor, "rows query"] | None,
    ]:
        """Split soft tokens into input vectors, the additions of each deeper layer, and the query."""
        levels = num_prompt_layers(self.config, self.reader) * self.reader.dim
        inputs, *deeper = soft[..., :levels].split(self.reader.dim, dim=-1)
        additions = {(level + 1) * self.config.deep_prompt_interval: addition for level, addition in enumerate(deeper)}
        return inputs, additions, soft[..., levels:].flatten(1) if soft.shape[-1] > levels else None

    @torch.no_grad()
    def fit_whitening(self, texts: Sequence[str], *, batch_size: int = 32) -> None:
        """Fit the whitening of the text pooling to texts without labels.

        Raises:
            ConfigError: If the model has no text pooling, or there are fewer than two texts.
        """
        if self.text_pooling is None:
            raise ConfigError("text_pooling_weight is 0: the model does not use the texts' own states.")
        if len(texts) < 2:
            raise ConfigError(f"texts to fit must be at least 2, got {len(texts)}. A few hundred are enough.")
        each = max(_FIT_TOKENS // len(texts), 1)
        means, tokens = [], []
        for states in self.text_states(sorted(texts, key=len), batch_size=batch_size):
            means += [own.float().mean(dim=0) for own in states if len(own)]  # without the empty texts
            tokens += [own[:: len(own) // each + 1].float() for own in states]
        self.text_pooling.fit(torch.stack(means), torch.cat(tokens))
        self.store.clear()

    @torch.no_grad()
    def text_states(
        self, texts: Sequence[str], *, batch_size: int = 32
    ) -> Iterator[list[Float[Tensor, "tokens dim_r"]]]:
        """Yield the token states of each text at the layer of the text pooling, `batch_size` texts at a time."""
        layers = text_pooling_layer(self.config, self.reader)
        assert layers is not None
        for start in range(0, len(texts), batch_size):
            cleaned = [clean_text(text) for text in texts[start : start + batch_size]]
            batch = self.reader.tokenizer.tokenize(cleaned, max_length=self.max_seq_length)
            ids, mask = batch.ids.to(self.device), batch.mask.to(self.device)
            hidden = hidden_states_at(self.reader.decoder, ids, mask, layers=layers)
            own = content_mask(mask, self.reader).bool()
            yield [states[kept] for states, kept in zip(hidden, own, strict=True)]

    def _embed_before(
        self, ids: Int[Tensor, "batch seq"], mask: Int[Tensor, "batch seq"], soft: Float[Tensor, "batch prompt dim_r"]
    ) -> Float[Tensor, "batch dim_r"]:
        """Embed with prefix placement: soft tokens, then the text, pooled over the text, with gradient throughout."""
        text = self.reader.model.get_input_embeddings()(ids)
        own = mask.new_ones(soft.shape[:2])
        inputs, present = torch.cat([soft.to(text.dtype), text], dim=1), torch.cat([own, mask], dim=1)
        text_mask = content_mask(mask, self.reader)
        # an empty text is represented by the soft tokens alone
        over = torch.cat([own * (text_mask.sum(dim=1, keepdim=True) == 0), text_mask], dim=1)
        # [padding, BOS, soft, text]: a sliding window counts columns, so none may lie between soft tokens and text; and
        # the attention sink, the first token, should not be a soft token
        order = torch.cat([2 * own, mask + 2 * text_mask], dim=1).argsort(dim=1, stable=True)
        inputs = inputs.gather(1, order.unsqueeze(-1).expand_as(inputs))
        states = forward_embeddings(self.reader.decoder, inputs, present.gather(1, order))
        return self.check_finite(l2_normalize(pool(states, over.gather(1, order), pooling=self.config.pooling)))

    # -- copies ------------------------------------------------------------------------------------------------------

    def __getstate__(self) -> dict[str, Any]:
        """Return the state for copies and other processes, with the compiled soft tokens that are still valid."""
        self.store.compiled = self.store.valid_compiled(self.trained_weights())
        return self.__dict__

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore the state. The version counters of a copy's weights restart; its compiled tokens are valid."""
        super().__setstate__(state)
        self.store.add_compiled({}, self.trained_weights())


def instruction_of_each(features: dict[str, Any], batch: int) -> list[str]:
    """Return the instruction of each text of a batch."""
    instruction = features["instruction"]
    return [instruction] * batch if isinstance(instruction, str) else list(instruction)
