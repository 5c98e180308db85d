"""Load any saved model or sentence-transformers model by folder, name or hub id."""

import importlib.metadata
import logging
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError
from sentence_transformers import SentenceTransformer

from promptembedder.backbone import BackboneConfig, hub_refusal, load_backbone
from promptembedder.errors import ConfigError, ModelFormatError, WeightsError
from promptembedder.model.baselines import BaselineEmbedder, frozen_pooling
from promptembedder.model.checkpoint import KIND
from promptembedder.model.embedder import PromptEmbedder
from promptembedder.model.prompted_transformer import PromptedSentenceTransformer, is_hub_id, saved_folder
from promptembedder.model.self_test import read_self_test
from promptembedder.storage import MANIFEST_NAME, read_manifest

__all__ = ["LoadedEncoder", "check_self_test", "load_encoder"]

logger = logging.getLogger(__name__)


def check_self_test(model: PromptEmbedder, folder: Path) -> float | None:
    """The cosine between the vector that was saved with the model and the one it computes now; None without one.

    Raises:
        WeightsError: They differ by more than another machine explains, or the vector is not finite.
        ModelFormatError: The saved one cannot be read.
    """
    saved, ref = read_self_test(folder), model.encoder.reader.identity
    if saved is None or saved.reader != ref.fingerprint:
        logger.info("the model brings no self-test for this reader")
        return None
    if model.encoder.prompter is None and saved.instruction not in model.encoder.store.compiled:
        return None
    now = model.encoder.self_test(saved.instruction)
    if now is None:
        raise WeightsError("the model's vectors are not finite. Load an earlier checkpoint, or use dtype float32.")
    cosine = saved.check(np.asarray(now.vector, dtype=np.float32), dtype=now.dtype)
    logger.info("self-test passed, cosine %.6f to the vector that was saved", cosine)
    return cosine


# what is asked for as frozen:WAY:BACKBONE, as (pooling, template)
FROZEN_WAYS = {
    "mean": ("mean", "instruct"),
    "last": ("last", "instruct"),
    "prompteol": ("last", "prompteol"),
    "plain": ("mean", "plain"),
}


@dataclass(frozen=True, kw_only=True)
class LoadedEncoder:
    """An encoder and what it takes.

    Attributes:
        takes_instructions: False for a model that was not made for them: an instruction would only blur its texts.
        provenance: Where it comes from, for results files.
    """

    name: str
    model: SentenceTransformer
    takes_instructions: bool
    provenance: dict[str, str] = field(default_factory=dict)


def load_encoder(
    name: str,
    *,
    reader: str | None = None,
    quantization: str | None = None,
    early_exit_fraction: float | None = None,
    cache_folder: Path | None = None,
    device: str | None = None,
) -> LoadedEncoder:
    """The model that `name` stands for.

    Args:
        name: Folder or hub id of a PromptEmbedder or baseline; `frozen:mean:BACKBONE` (also last, prompteol, plain);
            the distribution of an installed sentence-transformers model; or folder or hub id of one.
        reader: For a PromptEmbedder that was moved: the LLM to open it on.
        quantization: For a PromptEmbedder: of its reader.
        early_exit_fraction: For a PromptEmbedder: the share of its reader's layers that texts go through.

    Raises:
        ModelFormatError: It is none of these, a damaged one, or cannot be opened on the reader.
        BackboneError: A backbone is missing.
        ConfigError: A frozen way is unknown, or the depth is none.
    """
    folder = None if name.startswith("frozen:") else _own_folder(name)
    is_dual = folder is not None and read_manifest(folder).kind == KIND
    if reader is not None and not is_dual:
        raise ModelFormatError(f"{name} is no PromptEmbedder, so it has one reader. Leave {reader!r} out.")
    if quantization is not None and not is_dual:
        raise ModelFormatError(f"{name} is no PromptEmbedder: its reader cannot be quantised here. Leave it out.")
    if early_exit_fraction is not None and not is_dual:
        raise ModelFormatError(
            f"{name} is no PromptEmbedder: its texts leave no layer early. Leave {early_exit_fraction} out."
        )
    if name.startswith("frozen:"):
        return _frozen(name, cache_folder, device)
    if folder is not None:
        opened: PromptedSentenceTransformer
        if is_dual:
            opened = PromptEmbedder.from_pretrained(
                folder, reader=reader, quantization=quantization, cache_folder=cache_folder, device=device
            )
            opened.early_exit_fraction = (
                opened.early_exit_fraction if early_exit_fraction is None else early_exit_fraction
            )
        else:
            opened = BaselineEmbedder.from_pretrained(folder, cache_folder=cache_folder, device=device)
        fingerprint = opened.text_encoder.reader.identity.fingerprint
        return LoadedEncoder(name=name, model=opened, takes_instructions=True, provenance={"reader": fingerprint})
    return _foreign(name, device)


def _own_folder(name: str) -> Path | None:
    """The folder of a model that this library saved, from the hub if need be; None if it is another one's."""
    folder = Path(name)
    if is_hub_id(name) and not folder.exists():
        try:
            folder = Path(snapshot_download(name, allow_patterns=[MANIFEST_NAME]))
            if (folder / MANIFEST_NAME).is_file():
                folder = saved_folder(name)
        except (OSError, ValueError, HfHubHTTPError):  # no such model: sentence-transformers will say so
            return None
    return folder if (folder / MANIFEST_NAME).is_file() else None


def _frozen(name: str, cache_folder: Path | None, device: str | None) -> LoadedEncoder:
    way, _, backbone = name.removeprefix("frozen:").partition(":")
    if way not in FROZEN_WAYS or not backbone:
        raise ConfigError(f"cannot read {name!r}. Write frozen:WAY:BACKBONE, WAY one of {', '.join(FROZEN_WAYS)}.")
    pooling, template = FROZEN_WAYS[way]
    reader = load_backbone(BackboneConfig(source=backbone), head=False, cache_folder=cache_folder)
    model = frozen_pooling(reader, pooling=pooling, template=template)
    if device is not None:
        model = model.to(device)
    provenance = {"reader": reader.identity.fingerprint}
    return LoadedEncoder(name=name, model=model, takes_instructions=template != "plain", provenance=provenance)


def _foreign(name: str, device: str | None) -> LoadedEncoder:
    """Any sentence-transformers model; no code of its own is run."""
    folder, provenance = _installed(name), {"source": name}
    if folder is not None:
        provenance["version"] = importlib.metadata.version(name)
    elif Path(name).exists() and not (Path(name) / "modules.json").is_file():
        raise ModelFormatError(
            f"{name} is no model: it has neither {MANIFEST_NAME} nor modules.json. Give a folder that save wrote."
        )
    elif not Path(name).exists() and name.startswith((".", "/", "~")):
        raise ModelFormatError(f"{name} does not exist. Check the path.")
    try:
        model = SentenceTransformer(str(folder or name), device=device)
    except (OSError, ValueError, RuntimeError, ImportError, LookupError, TypeError) as error:
        refusal = hub_refusal(name, error, instead="a local folder") if is_hub_id(name) else None
        reason = refusal or (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelFormatError(f"cannot open {name!r} as a sentence-transformers model: {reason}") from error
    return LoadedEncoder(name=name, model=model, takes_instructions=False, provenance=provenance)


def _installed(name: str) -> Path | None:
    """The model's folder inside an installed distribution, found by its file list and never imported."""
    try:
        files = importlib.metadata.files(name) or []
    except (importlib.metadata.PackageNotFoundError, ValueError):
        return None
    found = [file for file in files if file.name == "modules.json"]
    return Path(str(found[0].locate())).parent if found else None
