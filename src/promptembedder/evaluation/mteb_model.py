"""A model as mteb knows models: its `ModelMeta`, and an encoder that takes each task's own instruction."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from mteb.models.abs_encoder import AbsEncoder, PromptSource
from mteb.models.get_model_meta import MODEL_REGISTRY
from mteb.models.model_meta import ModelMeta, ScoringFunction
from mteb.types import PromptType

from promptembedder.errors import ConfigError
from promptembedder.model import PromptEmbedder, manifest_on, model_config, read_self_test, saved_folder
from promptembedder.storage import MANIFEST_NAME, file_sha256, read_manifest

__all__ = ["TaskInstructedEncoder", "model_meta", "register_model"]

_SETTINGS_NAME = "config_sentence_transformers.json"


class TaskInstructedEncoder(AbsEncoder):
    """A model under the instruction of each task that mteb gives it.

    That is the model's prompt of the task's name, else the task's own, else the model's for the type of task or for
    queries. Documents have the model's prompt `document`, else the task's for documents, else none: the default one.
    """

    prompt_priority = (
        PromptSource.CUSTOM_PROMPT,
        PromptSource.DEFAULT_TASK_PROMPT,
        PromptSource.TASK_TYPE_PROMPT,
        PromptSource.ENCODE_TYPE_PROMPT,
    )

    def __init__(self, model: PromptEmbedder) -> None:
        """Wrap `model`."""
        self.model = model
        self.prompts_dict = {name: text for name, text in model.prompts.items() if text}

    def encode(
        self,
        inputs: Any,
        *,
        task_metadata: Any,
        hf_split: str,
        hf_subset: str,
        prompt_type: PromptType | None = None,
        **kwargs: Any,
    ) -> np.ndarray:
        """Vectors of the batches of `inputs`, which hold `text`; `kwargs` are those of the model's own `encode`."""
        texts = [text for batch in inputs for text in batch["text"]]
        return self.model.encode(texts, prompt=self.instruction_for(task_metadata, prompt_type), **kwargs)

    def instruction_for(self, task_metadata: Any, prompt_type: PromptType | None) -> str | None:
        """The instruction that a task's texts are read under; None: the model's default one."""
        own = task_metadata.prompt
        if prompt_type == PromptType.document:
            of_task = own.get("document") if isinstance(own, dict) else None
            return self.prompts_dict.get("document") or of_task
        found = self.get_instruction(task_metadata, prompt_type)
        if isinstance(found, dict):  # a task of queries and documents, asked outside of a search
            found = found.get("query", "")
        return found.strip() or None

    def similarity(self, embeddings1: Any, embeddings2: Any) -> Any:
        """The model's own similarity."""
        return self.model.similarity(embeddings1, embeddings2)

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> Any:
        """The model's own similarity, row by row."""
        return self.model.similarity_pairwise(embeddings1, embeddings2)


def model_meta(
    model: str | Path | PromptEmbedder,
    *,
    name: str | None = None,
    revision: str | None = None,
    reader: str | None = None,
) -> ModelMeta:
    """What `mteb.evaluate` takes for a model: `mteb.evaluate(model_meta("runs/mine"), tasks)`.

    mteb keeps results by name and revision, so the revision of a folder is the hash of its manifest, which changes with
    any of its weights.

    Args:
        model: A saved model's folder or hub id, loaded when mteb asks for it; or a model.
        name: `owner/name`; by default the hub id, or `promptembedder/` and the folder's name.
        revision: By default the hub's commit, the manifest's hash, or that of the trained weights.
        reader: Of a saved model that was moved: the LLM to open it on.

    Raises:
        ModelFormatError: It is no saved model.
        ConfigError: The name is not of the form that mteb wants, or a loaded model is to be opened on a reader.
    """
    if isinstance(model, PromptEmbedder):
        if reader is not None:
            raise ConfigError(f"the model is open already. Open it on {reader!r} with from_pretrained.")
        return _meta(
            name or "promptembedder/model",
            revision or _weights_hash(model),
            loader=_loader_of(model),
            max_tokens=model.max_seq_length,
            embed_dim=model.get_embedding_dimension(),
            n_parameters=sum(weight.numel() for weight in model.parameters()),
            similarity_fn_name=ScoringFunction.from_str(str(model.similarity_fn_name)),
        )
    folder = saved_folder(model, revision=revision)
    manifest = manifest_on(read_manifest(folder), reader, folder)
    is_local = Path(model).is_dir()
    test = read_self_test(folder) if reader is None else None
    on = f"-{reader.replace('/', '-')}" if reader else ""
    settings = folder / _SETTINGS_NAME
    similarity = json.loads(settings.read_text(encoding="utf-8"))["similarity_fn_name"] if settings.is_file() else None
    return _meta(
        name or (f"promptembedder/{folder.resolve().name}{on}" if is_local else f"{model}{on}"),
        file_sha256(folder / MANIFEST_NAME)[:40] if is_local else folder.name,
        loader=_load,
        loader_kwargs={"folder": str(folder), "reader": reader},
        max_tokens=model_config(manifest).max_seq_length,
        embed_dim=None if test is None else len(test.vector),
        similarity_fn_name=ScoringFunction.from_str(similarity or "cosine"),
        reference=None if is_local else f"https://huggingface.co/{model}",
    )


def register_model(model: str | Path, *, reader: str | None = None) -> str:
    """Make a saved model known to mteb in this process, and return the name that it has there.

    `mteb.get_model(name)`, and with it mteb's own commands, find a model in mteb's registry or on the hub alone.

    Raises:
        ModelFormatError: It is no saved model.
    """
    meta = model_meta(model, reader=reader)
    assert meta.name is not None
    MODEL_REGISTRY[meta.name] = meta
    return meta.name


def _meta(name: str, revision: str, **known: Any) -> ModelMeta:
    if name.count("/") != 1:
        raise ConfigError(f"mteb wants names of the form owner/name, got {name!r}. Give such a name.")
    unknown = dict.fromkeys(
        (
            "release_date",
            "languages",
            "n_parameters",
            "memory_usage_mb",
            "license",
            "open_weights",
            "public_training_code",
            "public_training_data",
            "training_datasets",
        )
    )
    return ModelMeta(
        **{**unknown, **known},
        name=name,
        revision=revision,
        framework=["Sentence Transformers", "PyTorch", "safetensors"],
        use_instructions=True,
    )


def _load(
    name: str,
    revision: str | None = None,
    *,
    folder: str,
    reader: str | None = None,
    device: str | None = None,
    embed_dim: int | None = None,
) -> TaskInstructedEncoder:
    """The saved model in `folder`; name and revision are mteb's."""
    model = PromptEmbedder.from_pretrained(folder, reader=reader, device=device)
    model.truncate_dim = embed_dim
    return TaskInstructedEncoder(model)


def _loader_of(model: PromptEmbedder) -> Callable[..., TaskInstructedEncoder]:
    """A loader that gives this model; a closure, since mteb copies everything else that a `ModelMeta` holds."""

    def load(
        name: str, revision: str | None = None, *, device: str | None = None, embed_dim: int | None = None
    ) -> TaskInstructedEncoder:
        return TaskInstructedEncoder(model if device is None else model.to(device))

    return load


def _weights_hash(model: PromptEmbedder) -> str:
    digest = hashlib.sha256(model.encoder.reader.ref.fingerprint.encode())
    for weight in model.encoder.trained_weights():
        digest.update(weight.detach().float().cpu().numpy().tobytes())
    return digest.hexdigest()[:40]
