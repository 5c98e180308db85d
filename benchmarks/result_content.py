"""Provenance of a results file, and merging of the runs of several commands into one file."""

import dataclasses
import json
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.quality.mixture_config import MixtureConfig
from promptembedder.errors import ConfigError
from promptembedder.storage import describe_machine, versions

__all__ = ["merged_content", "provenance", "provenance_markdown"]

Content = Mapping[str, Any]


def provenance(config: MixtureConfig) -> dict[str, Any]:
    """Return command, machine, versions and settings of this process. Files are identified by name only."""
    named = {"mixture": Path(config.mixture).name, "tasks": Path(config.tasks).name}
    return {
        "commands": [shlex.join(["promptembedder", *sys.argv[1:]])],
        "machine": describe_machine(),
        "versions": versions(),
        "settings": dataclasses.asdict(config) | named,
    }


def merged_content(
    path: Path, content: Content, *, may_differ: Sequence[str], identity: Callable[[Content], tuple[Any, ...]]
) -> dict[str, Any]:
    """Return `content` merged with the other runs of the results file at `path`.

    Args:
        may_differ: Settings that may differ between the commands that fill one file. All but `work` are lists.
        identity: Returns the key that identifies a run.

    Raises:
        ConfigError: If those runs have other settings or are from another machine, and are therefore not comparable.
    """
    content = json.loads(json.dumps(content))  # tuples become lists, as in the file
    if not path.is_file():
        return dict(content)
    held = json.loads(path.read_text(encoding="utf-8"))
    for name, own in content["settings"].items():
        before = held["settings"].get(name)
        if name not in may_differ and before != own:
            raise ConfigError(f"{path} holds runs with {name} {before!r}, these have {own!r}. Choose another output.")
    if held["machine"] != content["machine"]:
        raise ConfigError(f"{path} holds runs of another machine. Choose another output.")
    own_runs = {identity(run) for run in content["runs"]}
    kept = [run for run in held["runs"] if identity(run) not in own_runs]
    together = {
        name: _together(held["settings"][name], content["settings"][name]) for name in may_differ if name != "work"
    }
    return {
        **content,
        "commands": list(dict.fromkeys([*held["commands"], *content["commands"]])),
        "settings": {**content["settings"], **together},
        "runs": [*kept, *content["runs"]],
    }


def _together(held: Sequence[Any], own: Sequence[Any]) -> list[Any]:
    return [*held, *(item for item in own if item not in held)]


def provenance_markdown(content: Content) -> list[str]:
    """Return machine, versions and commands as the last paragraphs of a page."""
    return [
        f"Machine: {_listed(content['machine'])}.\nVersions: {_listed(content['versions'])}.\n",
        "    " + "\n    ".join(content["commands"]) + "\n",
    ]


def _listed(facts: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in facts.items() if value is not None)
