"""Public names and silent imports."""

import importlib
import pkgutil
import subprocess
import sys

import pytest

import promptembedder
from promptembedder import errors

PACKAGES = [
    f"promptembedder.{module.name}"
    for module in pkgutil.iter_modules(promptembedder.__path__)
    if module.name != "__main__"
]


def test_top_level_names() -> None:
    assert promptembedder.__all__ == [
        "BackboneConfig",
        "ModelConfig",
        "PromptEmbedder",
        "PrompterConfig",
        "transfer_to",
    ]
    assert dir(promptembedder) == promptembedder.__all__


def test_top_level_names_are_those_of_their_packages() -> None:
    from promptembedder.backbone import BackboneConfig
    from promptembedder.method import ModelConfig, PrompterConfig
    from promptembedder.model import PromptEmbedder
    from promptembedder.training import transfer_to

    named = [BackboneConfig, ModelConfig, PromptEmbedder, PrompterConfig, transfer_to]
    assert [getattr(promptembedder, name) for name in promptembedder.__all__] == named


def test_unknown_top_level_name_raises_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'promptembedder' has no attribute 'Nothing'"):
        _ = promptembedder.Nothing


@pytest.mark.parametrize("package", PACKAGES)
def test_names_in_all_exist_and_are_unique(package: str) -> None:
    module = importlib.import_module(package)
    names = getattr(module, "__all__", [])
    assert len(set(names)) == len(names)
    assert [name for name in names if not hasattr(module, name)] == []


@pytest.mark.integration
@pytest.mark.parametrize("module", ["promptembedder", "promptembedder.cli.app"])
def test_importing_package_or_commands_does_not_import_torch(module: str) -> None:
    program = f"import sys, {module}; print({{'torch', 'transformers', 'numpy'}} & sys.modules.keys())"
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert (answer.stdout.strip(), answer.stderr) == ("set()", "")


@pytest.mark.integration
def test_import_with_torchao_installed_prints_nothing() -> None:
    """The import used to log "Failed to load ..." for its GPU kernels, and torch a note on pytrees."""
    program = "import promptembedder.backbone.load, promptembedder.training, logging\n"
    program += "print(logging.getLogger('torchao').level)"
    result = subprocess.run([sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True, check=True)
    assert (result.stdout.strip(), result.stderr) == ("0", "")


def test_errors_form_one_tree() -> None:
    kinds = [getattr(errors, name) for name in errors.__all__ if name.endswith("Error")]
    assert len(kinds) == len([name for name in errors.__all__ if name[0].isupper()]) >= 8
    assert all(issubclass(kind, errors.PromptEmbedderError) for kind in kinds)
    assert issubclass(errors.ConfigError, ValueError)
    assert issubclass(errors.DataError, ValueError)
