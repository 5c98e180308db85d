"""Turn any frozen LLM into an instruction-following text embedder."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from promptembedder.backbones import BackboneConfig
    from promptembedder.models import ModelConfig, PromptEmbedder, PrompterConfig

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
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    """The public names."""
    return __all__
