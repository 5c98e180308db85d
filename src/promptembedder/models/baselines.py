"""Cheaper and more usual ways to embed with the same LLM, behind the same door: what the method is measured against."""

from pathlib import Path

from sentence_transformers import SentenceTransformer

from promptembedder.backbones import Backbone, BackboneConfig, load_backbone
from promptembedder.errors import ConfigError
from promptembedder.models.baseline_checkpoint import load_baseline
from promptembedder.models.config import BaselineConfig, ModelConfig
from promptembedder.models.instructed import InstructedTransformer, saved_folder
from promptembedder.models.pooled_encoder import PooledEncoder
from promptembedder.models.static_encoder import StaticEncoder
from promptembedder.nn import POOLINGS

__all__ = ["BaselineEmbedder", "frozen_pooling"]


class BaselineEmbedder(InstructedTransformer):
    """A baseline: same reader, same meaning of `prompt`, same trainer, data and losses as the method."""

    @classmethod
    def create(
        cls,
        config: ModelConfig,
        baseline: BaselineConfig,
        *,
        reader: Backbone | None = None,
        cache_folder: Path | None = None,
        device: str | None = None,
        seed: int = 0,
    ) -> "BaselineEmbedder":
        """An untrained baseline.

        Args:
            config: Reader, length, pooling, soft tokens; what concerns the prompter is not looked at.
            reader: A loaded backbone to use; adapters and full training change it. None loads `config.reader`.
            seed: Of the adapters' random start.

        Raises:
            BackboneError: The reader cannot be loaded.
            ConfigError: The settings do not fit the kind of baseline.
        """
        if reader is None:
            reader = load_backbone(config.reader, head=False, cache_folder=cache_folder)
        return cls(modules=[_new_encoder(config, baseline, reader, seed=seed)], device=device)

    @classmethod
    def from_pretrained(
        cls, name: str | Path, *, cache_folder: Path | None = None, device: str | None = None
    ) -> "BaselineEmbedder":
        """A saved baseline; the backbone comes from its own source.

        Raises:
            ModelFormatError: The folder is torn, holds no baseline, or its backbone's weights have changed.
            BackboneError: The backbone is missing.
        """
        folder = saved_folder(name)
        model = cls(modules=[load_baseline(folder, _new_encoder, cache_folder=cache_folder)], device=device)
        model.restore_settings(folder)
        return model.eval()


def _new_encoder(
    config: ModelConfig, baseline: BaselineConfig, reader: Backbone, *, seed: int = 0
) -> StaticEncoder | PooledEncoder:
    if baseline.kind == "static":
        return StaticEncoder(config, baseline, reader)
    return PooledEncoder(config, baseline, reader, seed=seed)


def frozen_pooling(
    reader: Backbone, *, pooling: str = "mean", template: str = "plain", max_seq_length: int = 512
) -> SentenceTransformer:
    """A SentenceTransformer that pools the frozen reader's text states.

    Args:
        pooling: `mean` over the text, or `last` state of all.
        template: `plain` ignores the instruction; see `BaselineConfig`.

    Raises:
        ConfigError: The pooling or template is unknown.
    """
    if pooling not in POOLINGS:
        raise ConfigError(f"unknown pooling {pooling!r}. Use one of: {', '.join(POOLINGS)}.")
    config = ModelConfig(reader=_config_of(reader), pooling=pooling, max_seq_length=max_seq_length)
    return BaselineEmbedder.create(config, BaselineConfig(kind="frozen", template=template), reader=reader)


def _config_of(reader: Backbone) -> BackboneConfig:
    ref = reader.ref
    start = reader.tokenizer.text_start
    return BackboneConfig(
        source=ref.source, revision=ref.revision, dtype=ref.dtype, layers=ref.layers, text_start=start
    )
