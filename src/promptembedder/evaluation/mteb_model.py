"""Models for mteb: the `ModelMeta` of a model, and an encoder that uses each task's instruction."""

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

_ST_CONFIG_NAME = "config_sentence_transformers.json"


class TaskInstructedEncoder(AbsEncoder):
    """Encoder for mteb that uses the instruction of each task.

    The instruction is the model's prompt with the task's name, else the task's prompt, else the model's prompt for the
    type of task or for queries. For documents it is the model's prompt `document`, else the task's document prompt,
    else the default instruction.
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
        """Encode the `text` of the batches of `inputs`. `kwargs` are passed to the model's `encode`."""
        texts = [text for batch in inputs for text in batch["text"]]
        return self.model.encode(texts, prompt=self.instruction_for(task_metadata, prompt_type), **kwargs)

    def instruction_for(self, task_metadata: Any, prompt_type: PromptType | None) -> str | None:
        """Return the instruction for a task's texts. None stands for the model's default instruction."""
        task_prompt = task_metadata.prompt
        if prompt_type == PromptType.document:
            document_prompt = task_prompt.get("document") if isinstance(task_prompt, dict) else None
            return self.prompts_dict.get("document") or document_prompt
        found = self.get_instruction(task_metadata, prompt_type)
        if isinstance(found, dict):  # a retrieval task outside of a search
            found = found.get("query", "")
        return found.strip() or None

    def similarity(self, embeddings1: Any, embeddings2: Any) -> Any:
        """Compute the model's similarity matrix."""
        return self.model.similarity(embeddings1, embeddings2)

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> Any:
        """Compute the model's similarity row by row."""
        return self.model.similarity_pairwise(embeddings1, embeddings2)


def model_meta(
    model: str | Path | PromptEmbedder,
    *,
    name: str | None = None,
    revision: str | None = None,
    reader: str | None = None,
) -> ModelMeta:
    """Build the model argument of `mteb.evaluate`: `mteb.evaluate(model_meta("runs/mine"), tasks)`.

    mteb stores results by name and revision. The revision of a folder is the hash of its manifest, which depends on all
    weights.

    Args:
        model: Folder or hub id of a saved model, loaded on demand by mteb, or a loaded model.
        name: Name of the form `owner/name`. If None, the hub id, or `promptembedder/` and the folder's name.
        revision: If None, the hub's commit, the manifest's hash, or the hash of the trained weights.
        reader: LLM to load a transferred model on. If None, its main reader.

    Raises:
        ModelFormatError: `model` is not a saved model.
        ConfigError: The name is not of the form `owner/name`, or `reader` is given with a loaded model.
    """
    if isinstance(model, PromptEmbedder):
        if reader is not None:
            raise ConfigError(f"the model is already loaded. Load it on {reader!r} with from_pretrained.")
        return _meta(
            name or "promptembedder/model",
            revision or _weights_hash(model),
            loader=_make_loader(model),
            max_tokens=model.max_seq_length,
            embed_dim=model.get_embedding_dimension(),
            n_parameters=sum(weight.numel() for weight in model.parameters()),
            similarity_fn_name=ScoringFunction.from_str(str(model.similarity_fn_name)),
        )
    folder = saved_folder(model, revision=revision)
    manifest = manifest_on(read_manifest(folder), reader, folder)
    is_local = Path(model).is_dir()
    test = read_self_test(folder) if reader is None else None
    suffix = f"-{reader.replace('/', '-')}" if reader else ""
    st_config = folder / _ST_CONFIG_NAME
    similarity = (
        json.loads(st_config.read_text(encoding="utf-8"))["similarity_fn_name"] if st_config.is_file() else None
    )
    return _meta(
        name or (f"promptembedder/{folder.resolve().name}{suffix}" if is_local else f"{model}{suffix}"),
        file_sha256(folder / MANIFEST_NAME)[:40] if is_local else folder.name,
        loader=_load,
        loader_kwargs={"folder": str(folder), "reader": reader},
        max_tokens=model_config(manifest).max_seq_length,
        embed_dim=None if test is None else len(test.vector),
        similarity_fn_name=ScoringFunction.from_str(similarity or "cosine"),
        reference=None if is_local else f"https://huggingface.co/{model}",
    )


def register_model(model: str | Path, *, reader: str | None = None) -> str:
    """Add a saved model to mteb's registry in this process and return its name there.

    `mteb.get_model(name)`, and with it mteb's own commands, find models only in mteb's registry and on the hub.

    Raises:
        ModelFormatError: `model` is not a saved model.
    """
    meta = model_meta(model, reader=reader)
    assert meta.name is not None
    MODEL_REGISTRY[meta.name] = meta
    return meta.name


def _meta(name: str, revision: str, **known: Any) -> ModelMeta:
    if name.count("/") != 1:
        raise ConfigError(f"mteb needs a name of the form owner/name, got {name!r}.")
    fixed = {"framework": ["Sentence Transformers", "PyTorch", "safetensors"], "use_instructions": True}
    return ModelMeta.create_empty(overwrites={**fixed, **known, "name": name, "revision": revision})


def _load(
    name: str,
    revision: str | None = None,
    *,
    folder: str,
    reader: str | None = None,
    device: str | None = None,
    embed_dim: int | None = None,
) -> TaskInstructedEncoder:
    """Load the saved model in `folder`. `name` and `revision` are required by mteb and unused."""
    model = PromptEmbedder.from_pretrained(folder, reader=reader, device=device)
    model.truncate_dim = embed_dim
    return TaskInstructedEncoder(model)


def _make_loader(model: PromptEmbedder) -> Callable[..., TaskInstructedEncoder]:
    """Return a loader of this model: a closure, because mteb deep-copies all other contents of a `ModelMeta`."""

    def load(
        name: str, revision: str | None = None, *, device: str | None = None, embed_dim: int | None = None
    ) -> TaskInstructedEncoder:
        return TaskInstructedEncoder(model if device is None else model.to(device))

    return load


def _weights_hash(model: PromptEmbedder) -> str:
    digest = hashlib.sha256(model.encoder.reader.identity.fingerprint.encode())
    for weight in model.encoder.trained_weights():
        digest.update(weight.detach().float().cpu().numpy().tobytes())
    return digest.hexdigest()[:40]
