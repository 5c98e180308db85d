"""The server as a process, and the clients that people use."""

import asyncio
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
import torch

from promptembedder import BackboneConfig, ModelConfig, PromptEmbedder, PrompterConfig
from promptembedder.backbone.random_models import random_model, random_tokenizer

pytestmark = pytest.mark.integration

KEY = "k-0123456789abcdef"
COMPILED = "Find texts on the same topic"
TEXTS = ["a river and its mouth", "short", "Grüße 🙂"]
START_S = 120.0  # on a machine that is busy with other work


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose backbones are files, as another process will find them."""
    torch.set_num_threads(1)
    base = tmp_path_factory.mktemp("files")
    random_model("tiny-qwen3", layers=None, dtype=torch.float32).save_pretrained(base / "backbone")
    random_tokenizer().save_pretrained(base / "backbone")
    backbone = BackboneConfig(source=str(base / "backbone"), dtype="float32")
    config = ModelConfig(prompter=PrompterConfig(backbone=backbone), reader=backbone, max_seq_length=512)
    model = PromptEmbedder.create(config=config, device="cpu")
    model.prompts["query"] = COMPILED
    model.compile_instructions([COMPILED])
    model.save(str(base / "tiny"))
    return base / "tiny"


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


class Served:
    """A running server."""

    def __init__(self, process: subprocess.Popen[str], port: int) -> None:
        self.process, self.url = process, f"http://127.0.0.1:{port}"

    def status(self, path: str = "/health") -> int:
        try:
            return int(urllib.request.urlopen(self.url + path, timeout=5).status)
        except urllib.error.HTTPError as error:
            return error.code
        except OSError:
            return 0

    def wait_for(self, status: int) -> None:
        until = time.monotonic() + START_S
        while self.status() != status:
            assert time.monotonic() < until
            assert self.process.poll() is None, self.process.stderr.read() if self.process.stderr else ""
            time.sleep(0.1)


@contextmanager
def running(folder: Path, *words: str, env: dict[str, str] | None = None) -> Iterator[Served]:
    port = free_port()
    command = [
        sys.executable,
        "-m",
        "promptembedder",
        "serve",
        str(folder),
        "--port",
        str(port),
        "--device",
        "cpu",
        *words,
    ]
    process = subprocess.Popen(
        command,
        env={**os.environ, "OMP_NUM_THREADS": "1", **(env or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield Served(process, port)
    finally:
        process.kill()
        process.communicate()


@pytest.fixture(scope="module")
def server(model_folder: Path) -> Iterator[Served]:
    """With a key, from the environment, and a setting from there too."""
    env = {"PROMPTEMBEDDER_API_KEYS": f"{KEY},k-another-0123456789", "PROMPTEMBEDDER_SERVE_MAX_WAITING": "40"}
    with running(model_folder, "--log-format", "json", env=env) as served:
        served.wait_for(200)
        yield served


@pytest.fixture
def client(server: Served) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key=KEY, max_retries=0)


@pytest.fixture(scope="module")
def offline(model_folder: Path) -> Callable[..., np.ndarray]:
    model = PromptEmbedder.from_pretrained(model_folder, device="cpu")
    return lambda texts, instruction=None: model.encode(list(texts), prompt=instruction)


def test_openais_client_gets_the_models_vectors(client: openai.OpenAI, offline: Callable[..., np.ndarray]) -> None:
    # base64 unless told otherwise: that is what this client asks for
    answer = client.embeddings.create(model="tiny", input=TEXTS)
    np.testing.assert_allclose(np.array([one.embedding for one in answer.data]), offline(TEXTS), atol=1e-5)
    assert answer.usage.prompt_tokens > len(TEXTS)
    plain = client.embeddings.create(model="tiny", input=TEXTS, encoding_format="float", dimensions=8)
    assert [len(one.embedding) for one in plain.data] == [8] * len(TEXTS)
    free = client.embeddings.create(model="tiny", input=TEXTS, extra_body={"instruction": "name the mood"})
    np.testing.assert_allclose(
        np.array([one.embedding for one in free.data]), offline(TEXTS, "name the mood"), atol=1e-5
    )


def test_openais_client_lists_compiled_instructions_as_models(
    client: openai.OpenAI, offline: Callable[..., np.ndarray]
) -> None:
    own, compiled = list(client.models.list())
    assert own.id == "tiny"
    answer = client.embeddings.create(model=compiled.id, input=TEXTS)
    np.testing.assert_allclose(np.array([one.embedding for one in answer.data]), offline(TEXTS, COMPILED), atol=1e-5)


def test_openais_client_knows_our_errors(client: openai.OpenAI, server: Served) -> None:
    with pytest.raises(openai.NotFoundError, match="no such model is served"):
        client.embeddings.create(model="other", input="a")
    with pytest.raises(openai.BadRequestError, match="dimensions must be between 1 and 40"):
        client.embeddings.create(model="tiny", input="a", dimensions=99)
    with pytest.raises(openai.UnprocessableEntityError, match="input 0 has .* tokens, maximum"):
        client.embeddings.create(model="tiny", input="word " * 600)
    with pytest.raises(openai.AuthenticationError, match="a valid API key is needed"):
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="wrong", max_retries=0).embeddings.create(
            model="tiny", input="a"
        )


def test_openais_client_comes_again_when_it_is_told_to(server: Served) -> None:
    many = [f"{'word ' * 80}{n}" for n in range(36)]
    refused: list[int] = []

    async def all_at_once() -> list[Any]:
        async with httpx.AsyncClient(
            event_hooks={"response": [lambda answer: note(answer)]}, timeout=START_S
        ) as transport:
            patient = openai.AsyncOpenAI(
                base_url=f"{server.url}/v1", api_key=KEY, max_retries=20, http_client=transport
            )
            return await asyncio.gather(*(patient.embeddings.create(model="tiny", input=many) for _ in range(3)))

    async def note(answer: httpx.Response) -> None:
        refused.append(answer.status_code)

    answers = asyncio.run(all_at_once())
    assert 429 in refused
    assert refused.count(200) == 3
    first = np.array([one.embedding for one in answers[0].data])
    for answer in answers[1:]:
        np.testing.assert_allclose(np.array([one.embedding for one in answer.data]), first, atol=1e-5)


def test_langchain_speaks_to_it(server: Served, offline: Callable[..., np.ndarray]) -> None:
    from langchain_openai import OpenAIEmbeddings

    # without check_embedding_ctx_length it sends texts; else tokens of a vocabulary that is not ours
    embeddings = OpenAIEmbeddings(
        model="tiny",
        base_url=f"{server.url}/v1",
        api_key=KEY,  # type: ignore[arg-type]
        check_embedding_ctx_length=False,
        model_kwargs={"extra_body": {"instruction": COMPILED}},
    )
    np.testing.assert_allclose(np.array(embeddings.embed_documents(TEXTS)), offline(TEXTS, COMPILED), atol=1e-5)
    np.testing.assert_allclose(np.array(embeddings.embed_query(TEXTS[0])), offline(TEXTS[:1], COMPILED)[0], atol=1e-5)


GUIDE = (Path(__file__).parents[2] / "docs" / "serving.md").read_text(encoding="utf-8")
CURLS = re.findall(r"^\$ (curl .*?)\n```", GUIDE, flags=re.DOTALL | re.MULTILINE)
PYTHONS = re.findall(r"^```python\n(.*?)^```", GUIDE, flags=re.DOTALL | re.MULTILINE)


def test_the_guide_has_examples_of_every_kind() -> None:
    assert (len(CURLS), len(PYTHONS)) == (3, 2)


@pytest.mark.parametrize("command", CURLS)
def test_the_guides_curl_commands_answer(server: Served, command: str) -> None:
    command = command.replace("http://127.0.0.1:8000", server.url).replace(
        "curl ", f"curl -H 'Authorization: Bearer {KEY}' "
    )
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True, timeout=START_S)
    answer = json.loads(done.stdout)
    assert "error" not in answer
    assert len(answer if isinstance(answer, list) else answer["data"]) >= 1


@pytest.mark.parametrize("example", PYTHONS)
def test_the_guides_python_runs(server: Served, example: str) -> None:
    for written, here in (("http://127.0.0.1:8000", server.url), ("quickstart", "tiny"), ('"none"', f'"{KEY}"')):
        assert written in example
        example = example.replace(written, here)
    names: dict[str, Any] = {}
    exec(example, names)
    if "embeddings" in names:
        assert len(names["embeddings"].embed_query("a text")) == 40
    else:
        assert len(names["answer"].data) == 1


def ask(url: str, texts: list[str]) -> int:
    body = json.dumps({"input": texts}).encode()
    request = urllib.request.Request(f"{url}/v1/embeddings", body, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=START_S) as answer:
            return answer.status if len(json.load(answer)["data"]) == len(texts) else 0
    except urllib.error.HTTPError as error:
        return error.code


def test_sigterm_lets_requests_finish_refuses_new_ones_and_ends_well(model_folder: Path) -> None:
    """On a machine with other work a request was refused, since what waited was expected to outlast its deadline."""
    words = ("--log-format", "json", "--deadline-s", "600")
    with running(model_folder, *words) as served, ThreadPoolExecutor(8) as pool:
        served.wait_for(200)
        long = [[f"{'word ' * 90}{n} {one}" for n in range(150)] for one in range(4)]
        under_way = [pool.submit(ask, served.url, texts) for texts in long]
        while metric(served, "requests_in_flight") < 5:  # with the one that reads this
            time.sleep(0.01)
        served.process.send_signal(signal.SIGTERM)
        served.wait_for(503)
        assert ask(served.url, ["new"]) == 503
        assert [one.result() for one in under_way] == [200] * 4
        out, err = served.process.communicate(timeout=START_S)
    assert served.process.returncode == 0
    assert "serving tiny on http://127.0.0.1" in out
    logged = [json.loads(line) for line in err.splitlines()]
    assert any(line["message"].startswith("SIGTERM: draining, ") for line in logged)
    assert sum(line.get("inputs") == 150 and line["status"] == 200 for line in logged) == 4


def metric(served: Served, name: str) -> float:
    text = urllib.request.urlopen(f"{served.url}/metrics", timeout=5).read().decode()
    return float(next(line.split()[-1] for line in text.splitlines() if line.startswith(f"promptembedder_{name} ")))


def test_a_second_signal_ends_at_once(model_folder: Path) -> None:
    with running(model_folder) as served, ThreadPoolExecutor(1) as pool:
        served.wait_for(200)
        hopeless = pool.submit(ask, served.url, ["word " * 500 + str(n) for n in range(900)])
        while metric(served, "requests_in_flight") < 2:
            time.sleep(0.01)
        served.process.send_signal(signal.SIGTERM)
        served.wait_for(503)
        served.process.send_signal(signal.SIGTERM)
        served.process.wait(timeout=30)
        error = hopeless.exception()
        assert isinstance(error, OSError | http.client.HTTPException) if error else hopeless.result() >= 500


def test_a_model_that_cannot_be_loaded_ends_the_server_with_one_line(model_folder: Path) -> None:
    with running(model_folder, "--reader", "smollm2-135m") as served:
        _, err = served.process.communicate(timeout=START_S)
    assert served.process.returncode == 2
    last = err.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert "none for 'smollm2-135m'" in last
