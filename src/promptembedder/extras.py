"""Import of optional dependencies, with the install line in the error if one is missing."""

import importlib
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

__all__ = ["require", "require_version", "silence_torchao"]

_TORCHAO_LOGGERS = ("torchao", "torch.utils._pytree")


def require(module: str, *, extra: str) -> ModuleType:
    """Import `module`, which the optional `extra` installs.

    Raises:
        ImportError: The module is not installed. The message contains the install line.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise  # the module is installed, but one of its imports is broken: an install line would mislead
        raise ImportError(f'{module} is not installed. Run: pip install "promptembedder[{extra}]"') from error


@contextmanager
def require_version(distribution: str, *, extra: str, at_least: str) -> Iterator[None]:
    """Check the version of `distribution`, which the optional `extra` installs, before the imports in the context.

    This is a context manager so that the imports of a module that needs `distribution` stay at its top.

    Args:
        at_least: Oldest supported version, as in pyproject.toml.

    Raises:
        ImportError: The distribution is missing or older than `at_least`. The message contains the install line.
    """
    from importlib import metadata  # imported here: it takes a tenth of the time of `promptembedder --help`

    try:
        version = metadata.version(distribution)
    except metadata.PackageNotFoundError as error:
        raise ImportError(f'{distribution} is not installed. Run: pip install "promptembedder[{extra}]"') from error
    if _version_tuple(version) < _version_tuple(at_least):
        raise ImportError(
            f"{distribution} {version} is installed, promptembedder needs {at_least} or later. "
            f'Run: pip install --upgrade "promptembedder[{extra}]"'
        )
    yield


@contextmanager
def silence_torchao() -> Iterator[None]:
    """Suppress log records below ERROR of torchao's import, which transformers triggers if torchao is installed.

    torchao logs "Failed to load ..." for each GPU kernel that does not fit the machine, and torch notes a deprecation
    in torchao. Both levels are restored on exit.
    """
    loggers = [logging.getLogger(name) for name in _TORCHAO_LOGGERS]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _version_tuple(version: str) -> tuple[int, ...]:
    """Parse the first three numbers of a version. Missing numbers are 0."""
    numbers = [int(number) for number in re.findall(r"\d+", version)[:3]]
    return tuple(numbers + [0] * (3 - len(numbers)))
