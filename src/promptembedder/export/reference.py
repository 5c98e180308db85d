"""Compute embeddings from an export folder with transformers, vLLM or onnxruntime; promptembedder is not needed.

    python reference.py texts.txt --instruction "..." --output vectors.npy
    python reference.py texts.txt --instruction "..." --output vectors.npy --engine vllm

The script loads `export.json` and the other files of its folder; `texts.txt` has one text per line. It needs numpy and
transformers, and torch and safetensors (engines `transformers`, `vllm`) or onnxruntime (engine `onnx`: a folder written
with --format onnx). The vllm engine shares everything with the others but `_vllm_states`, which follows vLLM's
documentation and is not covered by the tests. Every engine computes the self-test of `export.json` first: if the
embedding differs, nothing is written.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch

__all__ = ["Export", "build_inputs", "embed", "pool_and_normalize", "read_export", "tokenize"]

_LEAST_COSINE = 0.99  # to the self-test embedding: other kernels and half precision cost thousandths at most


@dataclass(frozen=True)
class Export:
    """Export folder: its settings, and the path or hub id of tokenizer and backbone."""

    folder: Path
    config: dict[str, Any]
    backbone: str

    def entry(self, instruction: str) -> dict[str, Any]:
        """Return the entry of an instruction. Raises SystemExit with the known instructions if there is none."""
        known = {entry["instruction"]: entry for entry in self.config["instructions"]}
        if instruction not in known:
            raise SystemExit(f"error: {instruction!r} is not in this export. It has: {', '.join(map(repr, known))}")
        entry: dict[str, Any] = known[instruction]
        return entry


def read_export(folder: Path, backbone: str | None = None) -> Export:
    """Load the export in `folder`; `backbone` is a folder or hub id that replaces that of the export."""
    config = json.loads((folder / "export.json").read_text(encoding="utf-8"))
    if config["format"] != 1:
        raise SystemExit(f"error: export.json has format {config['format']}, this script supports 1.")
    named = config["backbone"]
    default = folder / named["folder"] if named["folder"] else named["source"]
    return Export(folder, config, str(backbone or default))


def tokenize(export: Export, tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Tokenize texts: prefix, then the text, truncated at the limit. Special strings are plain text."""
    rules = export.config["text"]
    begin: list[int] = rules["begins_with"]
    # unpaired surrogates, from JSON escapes or truncated strings, become U+FFFD
    clean = [text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace") for text in texts]
    rows = tokenizer(clean, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    return [(begin + row[: max(rules["max_tokens"] - len(begin), 0)])[: rules["max_tokens"]] for row in rows]


def build_inputs(export: Export, table: "torch.Tensor", soft: "torch.Tensor", ids: Sequence[int]) -> "torch.Tensor":
    """Build the input embeddings of one text, [tokens, dim]: [text, soft tokens] or [prefix, soft tokens, text].

    Args:
        table: The backbone's input embeddings, unscaled, in the dtype of the engine.
        soft: Soft tokens of the instruction, [prompt, dim].
    """
    import torch

    scale = torch.tensor(export.config["input"]["scale"], dtype=table.dtype)  # as the backbone's own module rounds it
    text = table[torch.tensor(ids, dtype=torch.long)] * scale
    soft = soft.to(table.dtype)
    if export.config["placement"] == "suffix":
        return torch.cat([text, soft])
    begin = len(export.config["text"]["begins_with"])
    return torch.cat([text[:begin], soft, text[begin:]])


def pool_and_normalize(export: Export, states: "torch.Tensor") -> np.ndarray:
    """Return the unit vector, float32, from the final hidden states; pooling `last` needs only the last of them.

    Args:
        states: [tokens, dim], not normalised.
    """
    states, config = states.float(), export.config
    if config["pooling"] == "last":
        pooled = states[-1]
    elif config["placement"] == "suffix":
        pooled = states[-config["soft_tokens"] :].mean(dim=0)
    else:
        begin = len(config["text"]["begins_with"])
        text = states[begin + config["soft_tokens"] :]
        # an empty text is represented by the soft tokens alone
        pooled = (text if len(text) else states[begin:]).mean(dim=0)
    return (pooled / pooled.norm().clamp_min(1e-12)).numpy()


def embed(
    export: Export, texts: Sequence[str], instruction: str, *, engine: str = "transformers", dtype: str | None = None
) -> np.ndarray:
    """Embed texts under an instruction, float32 [texts, dim]. Raises SystemExit if the self-test fails.

    Args:
        engine: `transformers`, `vllm` or `onnx`.
        dtype: Dtype of the backbone. If None, that of the export.
    """
    from transformers import AutoTokenizer

    test = export.entry(instruction)["self_test"]
    tokenizer = AutoTokenizer.from_pretrained(str(export.folder) if engine == "onnx" else export.backbone)
    rows = tokenize(export, tokenizer, [test["text"], *texts])
    if engine == "onnx":
        vectors = _onnx_vectors(export, rows)
    else:
        vectors = _engine_vectors(export, rows, instruction, engine, dtype or export.config["backbone"]["dtype"])
    cosine = float(vectors[0] @ np.asarray(test["vector"], dtype=np.float32))
    if not cosine >= _LEAST_COSINE:
        raise SystemExit(
            f"error: wrong embedding of the self-test: cosine {cosine:.4f}, expected at least {_LEAST_COSINE}. "
            "Check that the backbone is the one export.json names, that its input vectors are scaled as there, and "
            "that the engine returns final states that are not normalised."
        )
    return vectors[1:]


def _engine_vectors(
    export: Export, rows: Sequence[Sequence[int]], instruction: str, engine: str, dtype: str
) -> np.ndarray:
    import torch
    from safetensors.torch import load_file

    if export.config["kind"] != "soft-tokens":
        raise SystemExit(f"error: this is an export of kind {export.config['kind']!r}. Use --engine onnx.")
    tensors = load_file(export.folder / "soft_tokens.safetensors")
    soft = tensors[export.entry(instruction)["tensor"]]
    table = _input_table(export).to(getattr(torch, dtype))
    sequences = [build_inputs(export, table, soft, row) for row in rows]
    engine_states = {"transformers": _transformers_states, "vllm": _vllm_states}[engine]
    return np.stack([pool_and_normalize(export, states) for states in engine_states(export, sequences, dtype)])


def _input_table(export: Export) -> "torch.Tensor":
    """Load the input embeddings of the backbone without its other weights."""
    from safetensors import safe_open

    folder, name = Path(export.backbone), export.config["input"]["table"]
    if not folder.is_dir():
        from huggingface_hub import snapshot_download

        folder = Path(snapshot_download(export.backbone, revision=export.config["backbone"]["revision"]))
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for key in file.keys():  # safe_open is not a mapping
                if key == name or key.endswith(f".{name}"):
                    table: torch.Tensor = file.get_tensor(key)
                    return table
    raise SystemExit(f"error: {folder} contains no input embeddings named {name}. Pass another --backbone.")


def _transformers_states(
    export: Export, sequences: Sequence["torch.Tensor"], dtype: str, *, batch_size: int = 16
) -> Iterator["torch.Tensor"]:
    """Yield the final hidden states of each sequence, in left-padded batches."""
    import torch
    from transformers import AutoModel

    revision = export.config["backbone"]["revision"]
    backbone = AutoModel.from_pretrained(export.backbone, revision=revision, dtype=getattr(torch, dtype)).eval()
    for start in range(0, len(sequences), batch_size):
        batch = sequences[start : start + batch_size]
        width = max(map(len, batch))
        inputs = torch.stack([torch.nn.functional.pad(row, (0, 0, width - len(row), 0)) for row in batch])
        mask = torch.stack([(torch.arange(width) >= width - len(row)).long() for row in batch])
        positions = (mask.cumsum(dim=1) - 1).clamp_min(0)
        with torch.inference_mode():
            output = backbone(inputs_embeds=inputs, attention_mask=mask, position_ids=positions, use_cache=False)
        for row, states in zip(batch, output.last_hidden_state, strict=True):
            yield states[width - len(row) :]


def _vllm_states(export: Export, sequences: Sequence["torch.Tensor"], dtype: str) -> Iterator["torch.Tensor"]:
    """Yield final hidden states from vLLM's pooling runner: of the last position, or of all if several are pooled.

    This is the only function of the script without a test.
    """
    import torch
    from vllm import LLM, PoolingParams  # type: ignore[import-not-found, unused-ignore]

    engine = LLM(model=export.backbone, runner="pooling", dtype=dtype, enable_prompt_embeds=True)
    outputs = engine.encode(
        [{"prompt_embeds": sequence} for sequence in sequences],
        pooling_params=PoolingParams(use_activation=False),  # raw states: `pool_and_normalize` normalizes
        pooling_task="embed" if export.config["pooling"] == "last" else "token_embed",
    )
    for output in outputs:
        yield torch.as_tensor(output.outputs.data).cpu().reshape(-1, export.config["dim"])


def _onnx_vectors(export: Export, rows: Sequence[Sequence[int]], *, batch_size: int = 16) -> np.ndarray:
    """Run the ONNX graph on left-padded batches."""
    import onnxruntime  # type: ignore[import-untyped, unused-ignore]

    session = onnxruntime.InferenceSession(str(export.folder / "model.onnx"), providers=["CPUExecutionProvider"])
    vectors = []
    for start in range(0, len(rows), batch_size):
        batch = rows[start : start + batch_size]
        width = max([1, *map(len, batch)])  # a batch of empty texts has one column of padding
        ids = np.array([[0] * (width - len(row)) + list(row) for row in batch], dtype=np.int64)
        mask = np.array([[0] * (width - len(row)) + [1] * len(row) for row in batch], dtype=np.int64)
        vectors.append(session.run(None, {"input_ids": ids, "attention_mask": mask})[0])
    return np.concatenate(vectors)


def main(argv: Sequence[str] | None = None) -> None:
    """Embed the lines of a file."""
    parser = argparse.ArgumentParser(description="Vectors from a PromptEmbedder export.")
    parser.add_argument("texts", type=Path, help="file with one text per line")
    parser.add_argument("--instruction", help="one of the export; required if it has several")
    parser.add_argument("--output", type=Path, required=True, help=".npy file of the vectors, float32 [texts, dim]")
    parser.add_argument("--export", type=Path, default=Path(__file__).parent, help="folder of export.json")
    parser.add_argument("--backbone", help="folder or hub id of the reader, if not the one in export.json")
    parser.add_argument("--engine", choices=("transformers", "vllm", "onnx"), default="transformers")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"))
    args = parser.parse_args(argv)
    export = read_export(args.export, args.backbone)
    known = [entry["instruction"] for entry in export.config["instructions"]]
    if args.instruction is None and len(known) > 1:
        raise SystemExit(f"error: the export has several instructions. Pass --instruction, one of: {known}")
    texts = args.texts.read_text(encoding="utf-8").splitlines()
    vectors = embed(export, texts, args.instruction or known[0], engine=args.engine, dtype=args.dtype)
    np.save(args.output, vectors)
    sys.stdout.write(f"{args.output}: vectors {vectors.shape[0]} x {vectors.shape[1]} (texts x dimensions)\n")


if __name__ == "__main__":
    main()
