"""Turn any frozen LLM into an instruction-following text embedder."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from promptembedder.backbone import BackboneConfig
    from promptembedder.method import ModelConfig, PrompterConfig
    from promptembedder.model import PromptEmbedder
    from promptembedder.training import transfer_to

__all__ = ["BackboneConfig", "ModelConfig", "PromptEmbedder", "PrompterConfig", "transfer_to"]

_MODULE_OF = {
    "BackboneConfig": "promptembedder.backbone",
    "ModelConfig": "promptembedder.method",
    "PromptEmbedder": "promptembedder.model",
    "PrompterConfig": "promptembedder.method",
    "transfer_to": "promptembedder.training",
}


def __getattr__(name: str) -> Any:
    """Import a public name on first use, so that `import promptembedder` does not import torch."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'promptembedder' has no attribute {name!r}")
    return getattr(import_module(_MODULE_OF[name]), name)


def __dir__() -> list[str]:
    """List the public names."""
    return __all__
