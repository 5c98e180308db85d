"""GGUF files de-quantised once into a cache folder that transformers loads in a second."""

import io
import json
import logging
import os
import shutil
import tempfile
from contextlib import redirect_stderr
from pathlib import Path

import torch
from filelock import FileLock
from transformers import AutoModelForCausalLM, AutoTokenizer

from promptembedder.backbones.gguf_header import check_gguf
from promptembedder.backbones.quiet import quiet_transformers
from promptembedder.backbones.sources import BackboneSource, sha256_of
from promptembedder.errors import BackboneError

__all__ = ["converted_gguf"]

logger = logging.getLogger(__name__)

_LAYOUT = 1  # counts up when the converted files change meaning, so that an old cache is not read as a new one


def converted_gguf(source: BackboneSource, cache_folder: Path) -> tuple[Path, str]:
    """Folder with the float32 model and tokenizer of a GGUF, and the sha256 of the GGUF it was made from.

    The first call converts; the folder then appears under its final name in one step, so that a killed or a concurrent
    call leaves nothing half-made.

    Raises:
        BackboneError: The file is damaged, hashes to something else than promised, or its architecture is unknown.
    """
    # An installed model's hash is known beforehand: its cache is found without reading the file again.
    digest = source.sha256 or sha256_of(source.parts)
    folder = cache_folder / f"gguf-v{_LAYOUT}" / digest[:24]
    if _is_complete(folder):
        return folder, digest
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):  # a second process waits for the first one's work instead of repeating it
        if not _is_complete(folder):
            found = sha256_of(source.parts)
            if found != digest:
                raise BackboneError(
                    f"the weights of {source.name!r} have sha256 {found[:12]}…, expected {digest[:12]}…. "
                    "The file is damaged: install or download it again."
                )
            _convert(source, folder)
    return folder, digest


def _is_complete(folder: Path) -> bool:
    """Whether every file is there at its full length; guards against a disk that lost data after the rename."""
    try:
        sizes: dict[str, int] = json.loads((folder / "sizes.json").read_text())
        return all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, AttributeError, TypeError, RecursionError):  # also JSON of another shape
        return False


def _convert(source: BackboneSource, folder: Path) -> None:
    logger.info("de-quantising %s into %s (once)", source.name, folder)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".converting-") as scratch:
        gguf = _single_file(source, Path(scratch))
        check_gguf(gguf, name=source.name)
        target = Path(scratch) / "model"
        try:
            # the reader's own progress bar heeds no setting
            with quiet_transformers(), redirect_stderr(io.StringIO()):
                tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
                model, report = AutoModelForCausalLM.from_pretrained(
                    gguf.parent, gguf_file=gguf.name, dtype=torch.float32, output_loading_info=True
                )
                if report["missing_keys"]:  # transformers draws them at random and carries on
                    raise ValueError(f"it lacks {min(report['missing_keys'])}")
                # The weights are dense now; transformers still thinks of them as packed and would refuse to save.
                model.hf_quantizer, model.is_quantized = None, False
                if hasattr(model.config, "quantization_config"):
                    del model.config.quantization_config
                model.save_pretrained(target)
                tokenizer.save_pretrained(target)
        except Exception as error:  # the foreign reader raises whatever a torn file makes it stumble over
            raise BackboneError(f"cannot read {source.name!r} as a GGUF model: {_first_line(error)}") from error
        _publish(target, folder)


def _single_file(source: BackboneSource, scratch: Path) -> Path:
    """The GGUF as one file: itself, or its parts put together in `scratch`."""
    if len(source.parts) == 1:
        return source.parts[0].resolve()
    joined = scratch / "joined.gguf"
    with joined.open("wb") as out:
        for part in source.parts:
            with part.open("rb") as piece:
                shutil.copyfileobj(piece, out, 1 << 22)
    return joined


def _publish(made: Path, folder: Path) -> None:
    """Sync the files to disk, then give the folder its final name."""
    sizes = {path.name: path.stat().st_size for path in made.iterdir()}
    (made / "sizes.json").write_text(json.dumps(sizes))
    for path in made.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
    if folder.exists():  # incomplete, or we would not be here
        shutil.rmtree(folder)
    made.rename(folder)


def _first_line(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0]
