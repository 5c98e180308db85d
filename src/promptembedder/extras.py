"""Optional dependencies: asked for by name, refused with the line that installs them."""

import importlib
from types import ModuleType

__all__ = ["require"]


def require(module: str, *, extra: str) -> ModuleType:
    """The imported `module`, which comes with the optional `extra`.

    Raises:
        ImportError: The module is not installed; the message holds the install line.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise  # the module is there and one of its own imports is broken: that is not ours to explain
        raise ImportError(f'{module} is not installed. Run: pip install "promptembedder[{extra}]"') from error
