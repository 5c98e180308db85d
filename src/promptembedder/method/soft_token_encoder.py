"""A frozen reader with soft tokens beside the text: what the dual model and static soft tokens share."""

import dataclasses
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch

from promptembedder.backbone import (
    Backbone,
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
from promptembedder.method.alignment import ResidualLinear
from promptembedder.method.config import ModelConfig
from promptembedder.method.pooling import WhitenedTextPooling, l2_normalize, pool, pool_prefixes
from promptembedder.method.soft_token_cache import SoftTokenStore
from promptembedder.method.text_encoder import TextEncoder
from promptembedder.method.text_pooling import content_mask, early_exit_layer, text_pooling_layer
from promptembedder.types import Float, Int, Tensor

__all__ = ["SoftTokenEncoder"]

# More make no product quicker, and what a layer makes of more is fetched from the system anew each time.
_PACKED_ON_CPU = 2048


class SoftTokenEncoder(TextEncoder):
    """Text and instruction in, unit vector out; where soft tokens come from is the subclass's matter.

    The soft tokens of one instruction are [prompt, levels * dim_r]: the first dim_r numbers of each are its input
    vector in the reader, the others are added to its state where it enters the deeper layers
    (`config.deep_prompt_interval`).

    Attributes:
        reading: How many texts are gone through, and what was read so far.
        text_cache: What is kept of texts from one epoch of training to the next; None keeps nothing.
            return_prefix_embeddings: In training with suffix placement, features get `step_embeddings`, too, [batch
            prompt dim_r]:
            the
            embedding after the first soft token alone, after two, and so on; the last is `sentence_embedding`.
    """

    def __init__(
        self,
        config: ModelConfig,
        reader: Backbone,
        *,
        text_pooling: WhitenedTextPooling | None,
        head: ResidualLinear | None,
    ) -> None:
        """Read with the frozen `reader`, which may be shared.

        Args:
            text_pooling: Adds the text's own states to the pooled state, if there is one; in evaluation only.
            head: Maps the pooled state before that, if there is one.
        """
        super().__init__(reader, max_seq_length=config.max_seq_length, positions_taken=config.num_soft_tokens)
        if config.placement == "suffix":
            early_exit_layer(config, reader)  # told now, not at the first text
        self.config = config
        self.store = SoftTokenStore()
        self.text_pooling, self.head = text_pooling, head
        self.reading = TokenBudgetBatcher(self._width_for, packed_tokens=self.packed_tokens)
        self.text_cache: TextCacheStore | None = None
        self.return_prefix_embeddings = False

    @abstractmethod
    def generate(self, instructions: Sequence[str]) -> Float[Tensor, "instructions prompt width"]:
        """Soft tokens of each instruction, with gradient to the trained weights."""

    @abstractmethod
    def generate_for_texts(self, features: dict[str, Any]) -> Float[Tensor, "batch prompt width"]:
        """Soft tokens of each text of a batch, where they depend on it (`config.conditioning`)."""

    # -- what sentence-transformers asks of an input module ---------------------------------------------------------

    def instructed_features(self, inputs: Sequence[str], prompt: str | None) -> dict[str, Any]:
        """Token ids of the texts, and the instruction they are read under (`prompt`, or the default)."""
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

        The same vectors as one by one. A text that comes more than once is read once, whatever its instruction; the
        prompter reads all distinct instructions at once. With K queries a text, one wide pass beats one small pass a
        column.
        """
        if not self.reads_text_once or not self.training:
            for features in columns:
                features |= self.forward(features)
            return
        instructions = [features["instruction"] for features in columns]
        soft = self.soft_tokens(instructions)
        sizes = [len(features["input_ids"]) for features in columns]
        repeats = torch.tensor(sizes, device=soft.device)
        embedded = self._embedded(self.read(columns), soft.repeat_interleave(repeats, dim=0))
        for name, embeddings in embedded.items():
            for features, rows in zip(columns, embeddings.split(sizes), strict=True):
                features[name] = rows

    # -- the method --------------------------------------------------------------------------------------------------

    def instruction_of(self, prompt: str | None) -> str:
        """The instruction that `prompt` stands for: without blanks around it, the default one if nothing is left."""
        return clean_instruction(prompt) or self.config.default_instruction

    def soft_tokens(self, instructions: Sequence[str]) -> Float[Tensor, "instructions prompt width"]:
        """Soft tokens of each instruction in the reader's space; generated once for each state of the weights.

        Raises:
            ConfigError: An instruction is not compiled and there is no prompter to generate it.
        """
        named = [self.instruction_of(instruction) for instruction in instructions]
        return self.store.get(named, self.generate, self.trained_weights(), training=self.training, device=self.device)

    def soft_tokens_of_batch(self, features: dict[str, Any], batch: int) -> Float[Tensor, "batch prompt width"]:
        """Soft tokens of each row of a batch of one instruction."""
        if self.config.conditioning == "instruction_and_text":
            return self.generate_for_texts(features)
        return self.soft_tokens([features["instruction"]]).expand(batch, -1, -1)

    @property
    def reads_text_once(self) -> bool:
        """Whether the states of a text are the same under every instruction."""
        return self.config.placement == "suffix" and self.config.conditioning == "instruction"

    def read(self, columns: Sequence[dict[str, Any]]) -> TextCache:
        """What `embed_after` needs in training of the texts of all columns, one below the other; no gradient.

        Each distinct text is read once, beside others of like length, and not at all if its states are held.
        """
        texts = [row for features in columns for row in unpad(features)]
        distinct = list(dict.fromkeys(texts))
        held, packed, new = ([], [], distinct) if self.text_cache is None else self.text_cache.split(distinct)

        def read(places: list[int]) -> TextCache:
            rows = [new[place] for place in places]
            states = self.read_rows(rows)
            if self.text_cache is not None:
                self.text_cache.add(rows, states)
            return dataclasses.replace(states, hidden=states.hidden[..., :0])  # training has no use for it

        batches, parts = self.reading.map_batches(new, read, supports_packing=True)
        rows = [[new[place] for place in batch] for batch in batches]
        if held:
            assert self.text_cache is not None
            parts.append(self.text_cache.states(packed, device=self.device))
            rows.append(held)
        if self.text_cache is not None:
            self.diagnostics["texts_held"] = len(held) / len(distinct)
        place_of = {row: (part, place) for part, batch in enumerate(rows) for place, row in enumerate(batch)}
        return gather_text_caches(parts, [place_of[text] for text in texts])

    def embed_under_each(
        self,
        texts: Sequence[str],
        soft: Float[Tensor, "instructions prompt width"],
        *,
        max_texts: int | None = None,
        on_texts: Callable[[int], None] = lambda _: None,
    ) -> Float[Tensor, "instructions texts dim_r"]:
        """Suffix placement: unit vectors of texts under each of several instructions, in batches of like length.

        Args:
            max_texts: Of a batch.
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
        """A batch in evaluation: no more than one of its smaller batches has its states in memory at a time."""
        rows = unpad(features)
        first = {row: place for place, row in reversed(list(enumerate(rows)))}
        distinct = list(first)

        def embed(places: list[int]) -> Tensor:
            own = [distinct[place] for place in places]
            return self.embed_token_ids(own, soft[[first[row] for row in own]])

        batches, parts = self.reading.map_batches(distinct, embed, supports_packing=True)
        number = {row: i for i, row in enumerate(distinct)}
        return {"sentence_embedding": restore_order(batches, parts, dim=0)[[number[row] for row in rows]]}

    def read_rows(self, texts: Sequence[TokenIds]) -> TextCache:
        """What `embed_after` needs of a batch of texts, given as token ids; no gradient."""
        ids, mask = self._padded(texts)
        layers = None if self.training else text_pooling_layer(self.config, self.reader)
        last = early_exit_layer(self.config, self.reader)
        return prefill(self.reader.decoder, ids, mask, hidden_layers=layers, early_exit_layer=last)

    def _padded(self, texts: Sequence[TokenIds]) -> tuple[Int[Tensor, "batch seq"], Int[Tensor, "batch seq"]]:
        return left_pad_ids(texts, device=self.device, width=self._width_for(max(map(len, texts), default=0)))

    def _width_for(self, longest: int) -> int:
        """Columns of a batch of texts: of few different widths where each new one costs memory for good."""
        if self.device.type != "cpu" or self.reader.decoder.dtype.itemsize != 2:
            return longest
        return bucket_width(longest + self.config.num_soft_tokens) - self.config.num_soft_tokens

    def packed_tokens(self) -> int | None:
        """Tokens that are read best at once where the reader needs no padding; None: it does."""
        if not supports_packing(self.reader.decoder):
            return None
        return _PACKED_ON_CPU if self.device.type == "cpu" else self.reading.max_batch_tokens

    def embed_token_ids(
        self, texts: Sequence[TokenIds], soft: Float[Tensor, "batch prompt width"]
    ) -> Float[Tensor, "batch dim_r"]:
        """Suffix placement: unit vectors of a batch of texts, given as token ids, each under its own soft tokens."""
        if torch.is_grad_enabled() or self.training:
            return self.embed_after(self.read_rows(texts), soft)
        ids, mask = self._padded(texts)
        inputs, additions = self._split_by_layer(soft)
        after, hidden = forward_with_suffix(
            self.reader.decoder,
            ids,
            mask,
            inputs,
            additions,
            hidden_layers=text_pooling_layer(self.config, self.reader),
            early_exit_layer=early_exit_layer(self.config, self.reader),
        )
        return self._pool_and_normalize(after, self._text_means(TextCache((), (), mask, hidden)))

    def embed_after(self, states: TextCache, soft: Float[Tensor, "batch prompt width"]) -> Float[Tensor, "batch dim_r"]:
        """Suffix placement: unit vectors from texts already read and soft tokens that follow them.

        Raises:
            WeightsError: If a weight or state is not finite, in evaluation mode.
        """
        return self._pool_and_normalize(self._states_after(states, soft), self._text_means(states))

    def embed_cached(
        self, states: TextCache, soft: Float[Tensor, "instructions prompt width"]
    ) -> Float[Tensor, "instructions batch dim_r"]:
        """Suffix placement: unit vectors of every text under each of several instructions, from one pass over all.

        Raises:
            WeightsError: If a weight or state is not finite, in evaluation mode.
        """
        inputs, additions = self._split_by_layer(soft)
        after = forward_suffixes(self.reader.decoder, states, inputs, additions)
        own = self._text_means(states)
        return torch.stack([self._pool_and_normalize(one, own) for one in after])

    def _text_means(self, states: TextCache) -> tuple[Float[Tensor, "batch dim_r"], Int[Tensor, "batch 1"]] | None:
        """Means of the texts' own states, and which texts have any; None where they are not added."""
        # in training they would do part of the summary's work, and it would learn less: docs/results.md
        if self.text_pooling is None or self.training:
            return None
        own = content_mask(states.mask, self.reader)
        present = own.amax(dim=1, keepdim=True) if own.shape[1] else own.new_zeros(len(own), 1)
        return pool(states.hidden, own, pooling="mean"), present

    def _pool_and_normalize(
        self,
        after: Float[Tensor, "batch prompt dim_r"],
        own: tuple[Float[Tensor, "batch dim_r"], Int[Tensor, "batch 1"]] | None,
    ) -> Float[Tensor, "batch dim_r"]:
        everywhere = torch.ones(after.shape[:2], dtype=torch.long, device=after.device)
        summary = self._apply_head(pool(after, everywhere, pooling=self.config.pooling))
        if own is not None:
            assert self.text_pooling is not None
            summary = self.text_pooling(summary, *own)
        return self.check_finite(l2_normalize(summary))

    def prefix_embeddings(
        self, states: TextCache, soft: Float[Tensor, "batch prompt width"]
    ) -> Float[Tensor, "batch prompt dim_r"]:
        """Suffix placement: unit vectors after one soft token, after two, and so on, without the text's own states.

        A causal reader's states do not depend on the soft tokens that follow: all steps cost one pass.
        """
        return l2_normalize(
            self._apply_head(pool_prefixes(self._states_after(states, soft), pooling=self.config.pooling))
        )

    def _embedded(self, states: TextCache, soft: Float[Tensor, "batch prompt width"]) -> dict[str, Tensor]:
        if not (self.return_prefix_embeddings and self.training):
            return {"sentence_embedding": self.embed_after(states, soft)}
        steps = self.prefix_embeddings(states, soft)
        return {"sentence_embedding": steps[:, -1], "step_embeddings": steps}

    def _states_after(
        self, states: TextCache, soft: Float[Tensor, "batch prompt width"]
    ) -> Float[Tensor, "batch prompt dim_r"]:
        inputs, additions = self._split_by_layer(soft)
        return forward_suffix(self.reader.decoder, states, inputs, additions)

    def _split_by_layer(
        self, soft: Float[Tensor, "rows prompt width"]
    ) -> tuple[Float[Tensor, "rows prompt dim_r"], dict[int, Float[Tensor, "rows prompt dim_r"]]]:
        """What goes in at the input, and what is added at each deeper layer."""
        inputs, *deeper = soft.split(self.reader.dim, dim=-1)
        return inputs, {
            (level + 1) * self.config.deep_prompt_interval: addition for level, addition in enumerate(deeper)
        }

    @torch.no_grad()
    def fit_whitening(self, texts: Sequence[str], *, batch_size: int = 32) -> None:
        """Take from some texts, without labels, what all texts share; the text_pooling leaves it out from then on.

        Raises:
            ConfigError: There is no text text_pooling, or there are fewer than two texts.
        """
        if self.text_pooling is None:
            raise ConfigError("text_pooling_weight is 0: the model does not use the texts' own states.")
        if len(texts) < 2:
            raise ConfigError(f"texts to fit must be at least 2, got {len(texts)}. A few hundred are enough.")
        layers = text_pooling_layer(self.config, self.reader)
        assert layers is not None
        cleaned, means = sorted((clean_text(text) for text in texts), key=len), []
        for start in range(0, len(cleaned), batch_size):
            batch = self.reader.tokenizer.tokenize(cleaned[start : start + batch_size], max_length=self.max_seq_length)
            ids, mask = batch.ids.to(self.device), batch.mask.to(self.device)
            hidden = hidden_states_at(self.reader.decoder, ids, mask, layers=layers)
            own = content_mask(mask, self.reader)
            means.append(pool(hidden, own, pooling="mean")[own.any(dim=1)])  # not those without a token
        self.text_pooling.fit(torch.cat(means))
        self.store.clear()

    def _embed_before(
        self, ids: Int[Tensor, "batch seq"], mask: Int[Tensor, "batch seq"], soft: Float[Tensor, "batch prompt dim_r"]
    ) -> Float[Tensor, "batch dim_r"]:
        """Prefix placement: soft tokens, then the text, pool over the text; gradients run through all of it."""
        text = self.reader.model.get_input_embeddings()(ids)
        own = mask.new_ones(soft.shape[:2])
        inputs, present = torch.cat([soft.to(text.dtype), text], dim=1), torch.cat([own, mask], dim=1)
        text_mask = content_mask(mask, self.reader)
        # an empty text is represented by the soft tokens alone
        over = torch.cat([own * (text_mask.sum(dim=1, keepdim=True) == 0), text_mask], dim=1)
        # [padding, BOS, soft, text]: a sliding window counts columns, so none may lie between soft tokens and text; and
        # the attention sink, the first token of all, should be no soft token
        order = torch.cat([2 * own, mask + 2 * text_mask], dim=1).argsort(dim=1, stable=True)
        inputs = inputs.gather(1, order.unsqueeze(-1).expand_as(inputs))
        states = forward_embeddings(self.reader.decoder, inputs, present.gather(1, order))
        mapped = self._apply_head(pool(states, over.gather(1, order), pooling=self.config.pooling))
        return self.check_finite(l2_normalize(mapped))

    def _apply_head(self, states: Float[Tensor, "*rows dim_r"]) -> Float[Tensor, "*rows dim_r"]:
        return states if self.head is None else self.head(states)

    # -- copies ------------------------------------------------------------------------------------------------------

    def __getstate__(self) -> dict[str, Any]:
        """For copies and other processes: compiled soft tokens only as far as they fit the weights."""
        self.store.compiled = self.store.valid_compiled(self.trained_weights())
        return self.__dict__

    def __setstate__(self, state: dict[str, Any]) -> None:
        """A copy's weights count their changes anew; what came with them fits them."""
        super().__setstate__(state)
        self.store.add_compiled({}, self.trained_weights())
