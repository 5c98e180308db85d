"""Laws of `export_onnx`: the graph is the whole model under one instruction."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from promptembedder import PromptEmbedder, extras
from promptembedder.errors import ConfigError
from promptembedder.export import export_onnx
from promptembedder.export.onnx_file import FixedInstructionModel

pytestmark = pytest.mark.slow

INSTRUCTION = "Find the same topic"
TEXTS = ["a river and its mouth", "", "Grüße 🙂", "long " * 30]
NewModel = Callable[..., PromptEmbedder]


def test_what_is_traced_is_the_model_for_each_family_wherever_the_padding_is(new_model: NewModel, family: str) -> None:
    model = new_model(family, max_seq_length=40)
    encoder = model.encoder
    features = encoder.token_features([text for text in TEXTS if text])
    ids, mask = features["input_ids"], features["attention_mask"]
    right = torch.stack([row.roll(int(row.sum())) for row in mask])
    ids_right = torch.stack([row.roll(int(own.sum())) for row, own in zip(ids, mask, strict=True)])
    with torch.no_grad(), FixedInstructionModel(encoder, encoder.soft_tokens([INSTRUCTION])[0]).hooked() as graph:
        left_vectors, right_vectors = graph(ids, mask), graph(ids_right, right)
    expected = torch.from_numpy(model.encode([text for text in TEXTS if text], prompt=INSTRUCTION))
    torch.testing.assert_close(left_vectors, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(right_vectors, expected, atol=1e-5, rtol=0)


def test_what_no_graph_holds_is_refused(new_model: NewModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="needs placement 'suffix'.*'prefix'"):
        export_onnx(new_model(placement="prefix"), tmp_path / "out", instruction=INSTRUCTION)
    model = new_model()
    model.encoder.reader.model.config.layer_types = ["chunked_attention"] * 3
    with pytest.raises(ConfigError, match="chunked_attention.*promptembedder serve"):
        export_onnx(model, tmp_path / "out", instruction=INSTRUCTION)

    def absent(name: str) -> None:
        raise ModuleNotFoundError(name, name=name)

    monkeypatch.setattr(extras.importlib, "import_module", absent)
    with pytest.raises(ImportError, match=r'pip install "promptembedder\[onnx\]"'):
        export_onnx(new_model(), tmp_path / "out", instruction=INSTRUCTION)
    assert not (tmp_path / "out").exists()
