"""Optional dependencies: asked for by name, refused with the line that installs them."""

import importlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

__all__ = ["foreign_imports", "require"]


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


@contextmanager
def foreign_imports(distribution: str, *, extra: str, at_least: str) -> Iterator[None]:
    """While this lasts, names of `distribution` are imported, which comes with the optional `extra`.

    A context, so that the imports of a file that cannot do without stay at its top.

    Args:
        at_least: The oldest version whose names these are, as in pyproject.toml.

    Raises:
        ImportError: It is not installed, or older; the message holds the install line.
    """
    from importlib import metadata  # a tenth of the time that the program takes to show its help

    try:
        version = metadata.version(distribution)
    except metadata.PackageNotFoundError as error:
        raise ImportError(f'{distribution} is not installed. Run: pip install "promptembedder[{extra}]"') from error
    if _numbers(version) < _numbers(at_least):
        raise ImportError(
            f"{distribution} {version} is installed, promptembedder needs {at_least} or later. "
            f'Run: pip install --upgrade "promptembedder[{extra}]"'
        )
    yield


def _numbers(version: str) -> tuple[int, ...]:
    """The first three numbers of a version; those that it leaves out are 0."""
    found = [int(number) for number in re.findall(r"\d+", version)[:3]]
    return tuple(found + [0] * (3 - len(found)))
