"""Turn any frozen LLM into an instruction-following text embedder."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from promptembedder.backbone import BackboneConfig
    from promptembedder.method import ModelConfig, PrompterConfig
    from promptembedder.model import PromptEmbedder

__all__ = ["BackboneConfig", "ModelConfig", "PromptEmbedder", "PrompterConfig"]

_HOMES = {
    "BackboneConfig": "promptembedder.backbones",
    "ModelConfig": "promptembedder.models",
    "PromptEmbedder": "promptembedder.models",
    "PrompterConfig": "promptembedder.models",
}


def __getattr__(name: str) -> Any:
    """Load a public name on first use: `import promptembedder` alone costs nothing."""
    if name not in _HOMES:
        raise AttributeError(f"module 'promptembedder' has no attribute {name!r}")
    with _torchao_unheard():
        return getattr(import_module(_HOMES[name]), name)


@contextmanager
def _torchao_unheard() -> Iterator[None]:
    """While this lasts, torchao, which transformers imports, does not warn of kernels for GPUs that are not there."""
    loggers = [logging.getLogger(name) for name in ("torchao", "torch.utils._pytree")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def __dir__() -> list[str]:
    """The public names."""
    return __all__
