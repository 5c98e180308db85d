"""A frozen reader with soft tokens beside the text: what the dual model and static soft tokens share."""

import dataclasses
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch

from promptembedder.backbone import Backbone, TextStates, few_widths, gathered_states, packs, read_after, read_each_after, read_embeddings, read_hidden, read_text, read_text_and_after
from promptembedder.data import clean_instruction, clean_text
from promptembedder.errors import ConfigError
from promptembedder.method.config import ModelConfig
from promptembedder.method.soft_token_cache import SoftTokenStore
from promptembedder.method.text_encoder import TextEncoder
from promptembedder.backbone import TextReading, TokenRow, in_order, token_rows
from promptembedder.method.text_pooling import exit_layer, own_tokens, readout_layers
from promptembedder.backbone import TextStateStore
from promptembedder.method.alignment import IdentityStartLinear
from promptembedder.method.pooling import TextReadout, pooled, pooled_prefixes, unit_vectors
from promptembedder.backbone import left_padded, left_padded_rows
from promptembedder.types import Float, Int, Tensor

__all__ = ["SoftTokenEncoder"]

# More make no product quicker, and what a layer makes of more is fetched from the system anew each time.
_PACKED_ON_CPU = 2048


class SoftTokenEncoder(TextEncoder):
    """Text and instruction in, unit vector out; where soft tokens come from is the subclass's matter.

    The soft tokens of one instruction are [prompt, levels * dim_r]: the first dim_r numbers of each are its input
    vector in the reader, the others are added to its state where it enters the deeper layers (`settings.deep_every`).

    Attributes:
        reading: How many texts are gone through, and what was read so far.
        text_states: What is kept of texts from one epoch of training to the next; None keeps nothing.
        gives_steps: In training with suffix placement, features get `step_embeddings`, too, [batch prompt dim_r]: the
            embedding after the first soft token alone, after two, and so on; the last is `sentence_embedding`.
    """

    def __init__(
        self, settings: ModelConfig, reader: Backbone, *, readout: TextReadout | None, head: IdentityStartLinear | None
    ) -> None:
        """Read with the frozen `reader`, which may be shared.

        Args:
            readout: Adds the text's own states to the pooled state, if there is one; in evaluation only.
            head: Maps the pooled state before that, if there is one.
        """
        super().__init__(reader, max_seq_length=settings.max_seq_length, positions_taken=settings.num_soft_tokens)
        if settings.placement == "suffix":
            exit_layer(settings, reader)  # told now, not at the first text
        self.settings = settings
        self.store = SoftTokenStore()
        self.readout, self.head = readout, head
        self.reading = TextReading(self._width_for, packed_tokens=self.packed_tokens)
        self.text_states: TextStateStore | None = None
        self.gives_steps = False

    @abstractmethod
    def generate(self, instructions: Sequence[str]) -> Float[Tensor, "instructions prompt width"]:
        """Soft tokens of each instruction, with gradient to the trained weights."""

    @abstractmethod
    def generate_for_texts(self, features: dict[str, Any]) -> Float[Tensor, "batch prompt width"]:
        """Soft tokens of each text of a batch, where they depend on it (`settings.conditioning`)."""

    # -- what sentence-transformers asks of an input module ---------------------------------------------------------

    def instructed_features(self, inputs: Sequence[str], prompt: str | None) -> dict[str, Any]:
        """Token ids of the texts, and the instruction they are read under (`prompt`, or the default)."""
        return {**self.token_features(inputs), "instruction": self.instruction_of(prompt)}

    def forward(self, features: dict[str, Any], **_: Any) -> dict[str, Any]:
        """Add `sentence_embedding`, [batch dim_r], float32 and of length 1.

        Raises:
            ValueError: A weight or state is not finite (evaluation only: a trainer has its own check).
        """
        soft = self.soft_tokens_of_batch(features, len(features["input_ids"]))
        if self.settings.placement == "suffix":
            embedded = self._embedded(self.read([features]), soft) if self.training else self._encoded(features, soft)
            return {**features, **embedded}
        ids, mask = left_padded(features["input_ids"], features["attention_mask"])
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
        return clean_instruction(prompt) or self.settings.default_instruction

    def soft_tokens(self, instructions: Sequence[str]) -> Float[Tensor, "instructions prompt width"]:
        """Soft tokens of each instruction in the reader's space; generated once for each state of the weights.

        Raises:
            ConfigError: An instruction is not compiled and there is no prompter to generate it.
        """
        named = [self.instruction_of(instruction) for instruction in instructions]
        return self.store.get(named, self.generate, self.trained_weights(), training=self.training, device=self.device)

    def soft_tokens_of_batch(self, features: dict[str, Any], batch: int) -> Float[Tensor, "batch prompt width"]:
        """Soft tokens of each row of a batch of one instruction."""
        if self.settings.conditioning == "instruction_and_text":
            return self.generate_for_texts(features)
        return self.soft_tokens([features["instruction"]]).expand(batch, -1, -1)

    @property
    def reads_text_once(self) -> bool:
        """Whether the states of a text are the same under every instruction."""
        return self.settings.placement == "suffix" and self.settings.conditioning == "instruction"

    def read(self, columns: Sequence[dict[str, Any]]) -> TextStates:
        """What `embed_after` needs in training of the texts of all columns, one below the other; no gradient.

        Each distinct text is read once, beside others of like length, and not at all if its states are held.
        """
        texts = [row for features in columns for row in token_rows(features)]
        distinct = list(dict.fromkeys(texts))
        held, packed, new = ([], [], distinct) if self.text_states is None else self.text_states.split(distinct)

        def read(places: list[int]) -> TextStates:
            rows = [new[place] for place in places]
            states = self.read_rows(rows)
            if self.text_states is not None:
                self.text_states.add(rows, states)
            return dataclasses.replace(states, hidden=states.hidden[..., :0])  # training has no use for it

        batches, parts = self.reading.in_batches(new, read, packs=True)
        rows = [[new[place] for place in batch] for batch in batches]
        if held:
            assert self.text_states is not None
            parts.append(self.text_states.states(packed, device=self.device))
            rows.append(held)
        if self.text_states is not None:
            self.diagnostics["texts_held"] = len(held) / len(distinct)
        place_of = {row: (part, place) for part, batch in enumerate(rows) for place, row in enumerate(batch)}
        return gathered_states(parts, [place_of[text] for text in texts])

    def embed_each(
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
        rows = token_rows(self.token_features(texts))

        def embed(places: list[int]) -> Tensor:
            own = [rows[place] for place in places]
            if len(soft) == 1:
                vectors = self.embed_rows(own, soft.expand(len(own), -1, -1)).unsqueeze(0)
            else:
                vectors = self.embed_each_after(self.read_rows(own), soft)
            on_texts(len(places))
            return vectors

        batches, parts = self.reading.in_batches(rows, embed, max_texts=max_texts, packs=len(soft) == 1)
        return in_order(batches, parts, dim=1)

    def _encoded(self, features: dict[str, Any], soft: Float[Tensor, "batch prompt width"]) -> dict[str, Tensor]:
        """A batch in evaluation: no more than one of its smaller batches has its states in memory at a time."""
        rows = token_rows(features)
        first = {row: place for place, row in reversed(list(enumerate(rows)))}
        distinct = list(first)

        def embed(places: list[int]) -> Tensor:
            own = [distinct[place] for place in places]
            return self.embed_rows(own, soft[[first[row] for row in own]])

        batches, parts = self.reading.in_batches(distinct, embed, packs=True)
        number = {row: i for i, row in enumerate(distinct)}
        return {"sentence_embedding": in_order(batches, parts, dim=0)[[number[row] for row in rows]]}

    def read_rows(self, texts: Sequence[TokenRow]) -> TextStates:
        """What `embed_after` needs of a batch of texts, given as token ids; no gradient."""
        ids, mask = self._padded(texts)
        layers = None if self.training else readout_layers(self.settings, self.reader)
        last = exit_layer(self.settings, self.reader)
        return read_text(self.reader.decoder, ids, mask, hidden_layers=layers, exit_layer=last)

    def _padded(self, texts: Sequence[TokenRow]) -> tuple[Int[Tensor, "batch seq"], Int[Tensor, "batch seq"]]:
        return left_padded_rows(texts, device=self.device, width=self._width_for(max(map(len, texts), default=0)))

    def _width_for(self, longest: int) -> int:
        """Columns of a batch of texts: of few different widths where each new one costs memory for good."""
        if self.device.type != "cpu" or self.reader.decoder.dtype.itemsize != 2:
            return longest
        return few_widths(longest + self.settings.num_soft_tokens) - self.settings.num_soft_tokens

    def packed_tokens(self) -> int | None:
        """Tokens that are read best at once where the reader needs no padding; None: it does."""
        if not packs(self.reader.decoder):
            return None
        return _PACKED_ON_CPU if self.device.type == "cpu" else self.reading.max_batch_tokens

    def embed_rows(
        self, texts: Sequence[TokenRow], soft: Float[Tensor, "batch prompt width"]
    ) -> Float[Tensor, "batch dim_r"]:
        """Suffix placement: unit vectors of a batch of texts, given as token ids, each under its own soft tokens."""
        if torch.is_grad_enabled() or self.training:
            return self.embed_after(self.read_rows(texts), soft)
        ids, mask = self._padded(texts)
        inputs, additions = self._by_layer(soft)
        after, hidden = read_text_and_after(
            self.reader.decoder,
            ids,
            mask,
            inputs,
            additions,
            hidden_layers=readout_layers(self.settings, self.reader),
            exit_layer=exit_layer(self.settings, self.reader),
        )
        return self._finished(after, self._own_means(TextStates((), (), mask, hidden)))

    def embed_after(
        self, states: TextStates, soft: Float[Tensor, "batch prompt width"]
    ) -> Float[Tensor, "batch dim_r"]:
        """Suffix placement: unit vectors from texts already read and soft tokens that follow them.

        Raises:
            ValueError: A weight or state is not finite (evaluation only: a trainer has its own check).
        """
        return self._finished(self._states_after(states, soft), self._own_means(states))

    def embed_each_after(
        self, states: TextStates, soft: Float[Tensor, "instructions prompt width"]
    ) -> Float[Tensor, "instructions batch dim_r"]:
        """Suffix placement: unit vectors of every text under each of several instructions, from one pass over all.

        Raises:
            ValueError: A weight or state is not finite (evaluation only: a trainer has its own check).
        """
        inputs, additions = self._by_layer(soft)
        after = read_each_after(self.reader.decoder, states, inputs, additions)
        own = self._own_means(states)
        return torch.stack([self._finished(one, own) for one in after])

    def _own_means(self, states: TextStates) -> tuple[Float[Tensor, "batch dim_r"], Int[Tensor, "batch 1"]] | None:
        """Means of the texts' own states, and which texts have any; None where they are not added."""
        # in training they would do part of the summary's work, and it would learn less: docs/results.md
        if self.readout is None or self.training:
            return None
        own = own_tokens(states.mask, self.reader)
        present = own.amax(dim=1, keepdim=True) if own.shape[1] else own.new_zeros(len(own), 1)
        return pooled(states.hidden, own, pooling="mean"), present

    def _finished(
        self,
        after: Float[Tensor, "batch prompt dim_r"],
        own: tuple[Float[Tensor, "batch dim_r"], Int[Tensor, "batch 1"]] | None,
    ) -> Float[Tensor, "batch dim_r"]:
        everywhere = torch.ones(after.shape[:2], dtype=torch.long, device=after.device)
        summary = self._mapped(pooled(after, everywhere, pooling=self.settings.pooling))
        if own is not None:
            assert self.readout is not None
            summary = self.readout(summary, *own)
        return self.finite(unit_vectors(summary))

    def steps_after(
        self, states: TextStates, soft: Float[Tensor, "batch prompt width"]
    ) -> Float[Tensor, "batch prompt dim_r"]:
        """Suffix placement: unit vectors after one soft token, after two, and so on, without the text's own states.

        A causal reader's states do not depend on the soft tokens that follow: all steps cost one pass.
        """
        return unit_vectors(
            self._mapped(pooled_prefixes(self._states_after(states, soft), pooling=self.settings.pooling))
        )

    def _embedded(self, states: TextStates, soft: Float[Tensor, "batch prompt width"]) -> dict[str, Tensor]:
        if not (self.gives_steps and self.training):
            return {"sentence_embedding": self.embed_after(states, soft)}
        steps = self.steps_after(states, soft)
        return {"sentence_embedding": steps[:, -1], "step_embeddings": steps}

    def _states_after(
        self, states: TextStates, soft: Float[Tensor, "batch prompt width"]
    ) -> Float[Tensor, "batch prompt dim_r"]:
        inputs, additions = self._by_layer(soft)
        return read_after(self.reader.decoder, states, inputs, additions)

    def _by_layer(
        self, soft: Float[Tensor, "rows prompt width"]
    ) -> tuple[Float[Tensor, "rows prompt dim_r"], dict[int, Float[Tensor, "rows prompt dim_r"]]]:
        """What goes in at the input, and what is added at each deeper layer."""
        inputs, *deeper = soft.split(self.reader.dim, dim=-1)
        return inputs, {(level + 1) * self.settings.deep_every: addition for level, addition in enumerate(deeper)}

    @torch.no_grad()
    def fit_texts(self, texts: Sequence[str], *, batch_size: int = 32) -> None:
        """Take from some texts, without labels, what all texts share; the readout leaves it out from then on.

        Raises:
            ConfigError: There is no text readout, or there are fewer than two texts.
        """
        if self.readout is None:
            raise ConfigError("text_weight is 0: the model does not use the texts' own states.")
        if len(texts) < 2:
            raise ConfigError(f"texts to fit must be at least 2, got {len(texts)}. A few hundred are enough.")
        layers = readout_layers(self.settings, self.reader)
        assert layers is not None
        cleaned, means = sorted((clean_text(text) for text in texts), key=len), []
        for start in range(0, len(cleaned), batch_size):
            batch = self.reader.tokenizer.tokenize(cleaned[start : start + batch_size], max_length=self.max_seq_length)
            ids, mask = batch.ids.to(self.device), batch.mask.to(self.device)
            hidden = read_hidden(self.reader.decoder, ids, mask, layers=layers)
            own = own_tokens(mask, self.reader)
            means.append(pooled(hidden, own, pooling="mean")[own.any(dim=1)])  # not those without a token
        self.readout.fit(torch.cat(means))
        self.store.forget()

    def _embed_before(
        self, ids: Int[Tensor, "batch seq"], mask: Int[Tensor, "batch seq"], soft: Float[Tensor, "batch prompt dim_r"]
    ) -> Float[Tensor, "batch dim_r"]:
        """Prefix placement: soft tokens, then the text, pooled over the text; gradients run through all of it."""
        text = self.reader.model.get_input_embeddings()(ids)
        own = mask.new_ones(soft.shape[:2])
        inputs, present = torch.cat([soft.to(text.dtype), text], dim=1), torch.cat([own, mask], dim=1)
        text_mask = own_tokens(mask, self.reader)
        # an empty text is represented by the soft tokens alone
        over = torch.cat([own * (text_mask.sum(dim=1, keepdim=True) == 0), text_mask], dim=1)
        # [padding, BOS, soft, text]: a sliding window counts columns, so none may lie between soft tokens and text; and
        # the attention sink, the first token of all, should be no soft token
        order = torch.cat([2 * own, mask + 2 * text_mask], dim=1).argsort(dim=1, stable=True)
        inputs = inputs.gather(1, order.unsqueeze(-1).expand_as(inputs))
        states = read_embeddings(self.reader.decoder, inputs, present.gather(1, order))
        mapped = self._mapped(pooled(states, over.gather(1, order), pooling=self.settings.pooling))
        return self.finite(unit_vectors(mapped))

    def _mapped(self, states: Float[Tensor, "*rows dim_r"]) -> Float[Tensor, "*rows dim_r"]:
        return states if self.head is None else self.head(states)

    # -- copies ------------------------------------------------------------------------------------------------------

    def __getstate__(self) -> dict[str, Any]:
        """For copies and other processes: compiled soft tokens only as far as they fit the weights."""
        self.store.compiled = self.store.compiled_for(self.trained_weights())
        return self.__dict__

    def __setstate__(self, state: dict[str, Any]) -> None:
        """A copy's weights count their changes anew; what came with them fits them."""
        super().__setstate__(state)
        self.store.add_compiled({}, self.trained_weights())
