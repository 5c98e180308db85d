"""Pushing to a hub and coming back: huggingface_hub's own client against a hub that keeps its files in a folder."""

import base64
import hashlib
import json
import shutil
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
from huggingface_hub import ModelCard, constants
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator

from promptembedder import PromptEmbedder
from promptembedder.model import load_encoder

pytestmark = pytest.mark.slow

COMMIT = "c" * 40
FIND = "find the thing"
TEXTS = ["a red house", "cold winter"]


class _Hub(BaseHTTPRequestHandler):
    """What creating a repository, uploading a folder and downloading it need, for one commit."""

    folder: Path

    def log_message(self, *_: Any) -> None:
        """Stay silent."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path == "/api/repos/create":
            name = json.loads(body)
            self._answer({"url": f"{constants.ENDPOINT}/{name['organization']}/{name['name']}"})
        elif self.path == "/api/validate-yaml":
            self._answer({"errors": [], "warnings": []})
        elif "/preupload/" in self.path:
            files = [{"path": file["path"], "uploadMode": "regular"} for file in json.loads(body)["files"]]
            self._answer({"files": [{**file, "shouldIgnore": False, "oid": None} for file in files]})
        elif "/commit/" in self.path:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    target = self.folder / line["value"]["path"]
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.write_bytes(base64.b64decode(line["value"]["content"]))
            self._answer({"commitUrl": f"{constants.ENDPOINT}/us/model/commit/{COMMIT}", "commitOid": COMMIT})
        else:
            self._answer({"error": f"no {self.path}"}, status=404)

    def do_HEAD(self) -> None:
        self._file(self.path.rpartition("/")[2])

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        files = sorted(file.name for file in self.folder.glob("*"))
        if path.startswith("/api/models/us/model/tree/"):
            sizes = {name: (self.folder / name).stat().st_size for name in files}
            self._answer([{"type": "file", "path": name, "size": size, "oid": "0"} for name, size in sizes.items()])
        elif path.startswith("/api/models/us/model"):
            self._answer({"id": "us/model", "sha": COMMIT, "siblings": [{"rfilename": name} for name in files]})
        else:
            self._file(path.rpartition("/")[2])

    def _file(self, name: str) -> None:
        if "/us/model/resolve/" not in self.path or not (self.folder / name).is_file():
            self._answer({"error": "Entry not found"}, status=404, code="EntryNotFound")
            return
        content = (self.folder / name).read_bytes()
        self._send(200, content, {"X-Repo-Commit": COMMIT, "ETag": f'"{hashlib.sha1(content).hexdigest()}"'})

    def _answer(self, content: Any, *, status: int = 200, code: str = "") -> None:
        self._send(status, json.dumps(content).encode(), {"Content-Type": "application/json", "X-Error-Code": code})

    def _send(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of the one repository of a local hub, which huggingface_hub takes for the hub."""
    handler = type("Hub", (_Hub,), {"folder": tmp_path / "repository"})
    handler.folder.mkdir()
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    cache = str(tmp_path / "cache")
    for name, value in (
        ("HF_HUB_OFFLINE", False),
        ("ENDPOINT", address),
        ("HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}"),
        ("HF_HUB_CACHE", cache),
        ("HF_HUB_DISABLE_XET", True),
    ):
        monkeypatch.setattr(constants, name, value)
    monkeypatch.setattr(huggingface_hub.file_download, "HF_HUB_CACHE", cache, raising=False)
    monkeypatch.setenv("HF_TOKEN", "hf_local")
    yield handler.folder
    server.shutdown()
    server.server_close()


def test_a_pushed_model_comes_back_the_same(
    hub: Path, new_model: Callable[..., PromptEmbedder], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = new_model("tiny-qwen3")
    model.prompts = {"query": FIND}
    url = model.push_to_hub("us/model", token="hf_local")
    assert url.endswith(COMMIT)
    assert {"promptembedder.json", "modules.json", "README.md"} <= {file.name for file in hub.iterdir()}
    assert 'from_pretrained("us/model")' in (hub / "README.md").read_text(encoding="utf-8")

    expected = model.encode(TEXTS, prompt=FIND)
    back = PromptEmbedder.from_pretrained("us/model", device="cpu")
    np.testing.assert_array_equal(back.encode_query(TEXTS), expected)
    plain = SentenceTransformer("us/model", trust_remote_code=True, device="cpu")
    np.testing.assert_array_equal(plain.encode_query(TEXTS), expected)

    shutil.rmtree(hub)  # from here on there is the cache alone, and the hub is not asked
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for opened in (PromptEmbedder.from_pretrained("us/model", device="cpu"), load_encoder("us/model").model):
        np.testing.assert_array_equal(opened.encode(TEXTS, prompt=FIND), expected)


def test_the_card_is_one_that_the_hubs_library_reads(new_model: Callable[..., PromptEmbedder], tmp_path: Path) -> None:
    model = new_model("tiny-qwen3")
    model.prompts = {"query": FIND}
    model.save(str(tmp_path / "one"))
    card = ModelCard.load(tmp_path / "one" / "README.md")
    assert card.data.library_name == "sentence-transformers"
    assert card.data.pipeline_tag == "sentence-similarity"
    assert "promptembedder" in card.data.tags
    for said in (
        "`random:tiny-qwen3`, 3 layers",
        "`random:tiny-llama`, 2 layers",
        f"- `query`: {FIND}",
        "promptembedder transfer path/of/this/folder --to NEW_LLM",
        f'prompt="{FIND}"',
    ):
        assert said in card.text

    again = PromptEmbedder.from_pretrained(tmp_path / "one", device="cpu")
    again.save(str(tmp_path / "two"))  # what a card says of the training is nowhere else, so it is kept
    assert (tmp_path / "two" / "README.md").read_text() == (tmp_path / "one" / "README.md").read_text()


def test_the_card_has_the_last_evaluation_of_a_name_alone(
    new_model: Callable[..., PromptEmbedder], tmp_path: Path
) -> None:
    """The quickstart's card showed two evaluations under one name, the first of them that of the untrained model."""
    model = new_model()
    for score in (0.25, 0.75):
        evaluator = InformationRetrievalEvaluator({"q": "a"}, {"d": "b"}, {"q": {"d"}}, name="search", write_csv=False)
        evaluator.primary_metric = "search_cosine_ndcg@10"
        model.model_card_data.set_evaluation_metrics(evaluator, {evaluator.primary_metric: score}, epoch=-1, step=-1)
    model.save(str(tmp_path))
    card = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "0.75" in card
    assert "0.25" not in card
