"""`/v1/embeddings` and `/v1/models`: what OpenAI's clients send and expect."""

import base64
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient

from promptembedder.server import Limits

COMPILED = "Find texts on the same topic"
QUERY = "Find the text that answers the question"
FREE = "Say which mood a text has"
TEXTS = ["a river and its mouth", "short", "Grüße 🙂", "<|end|> \x00 is text", "short"]

Serve = Callable[..., TestClient]
Offline = Callable[..., np.ndarray]


def ask(client: TestClient, **body: Any) -> Any:
    answer = client.post("/v1/embeddings", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def vectors(content: Any) -> np.ndarray:
    assert [one["index"] for one in content["data"]] == list(range(len(content["data"])))
    return np.array([one["embedding"] for one in content["data"]], dtype=np.float32)


def refused(answer: Any, status: int) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    content = answer.json()
    assert content.keys() == {"error"}
    assert content["error"].keys() == {"message", "type", "param", "code"}
    assert "\n" not in content["error"]["message"]
    return content["error"]


@pytest.mark.parametrize("instruction", [None, COMPILED, FREE, f"  {FREE} ", ""])
def test_vectors_are_those_of_the_model(client: TestClient, offline: Offline, instruction: str | None) -> None:
    content = ask(client, input=TEXTS, model="tiny", instruction=instruction)
    np.testing.assert_allclose(vectors(content), offline(TEXTS, instruction), atol=1e-5)
    assert (content["object"], content["model"], content["truncated_inputs"]) == ("list", "tiny", 0)
    assert {one["object"] for one in content["data"]} == {"embedding"}


def test_one_text_and_a_list_of_it_are_the_same(client: TestClient) -> None:
    np.testing.assert_array_equal(
        vectors(ask(client, input="a river")), vectors(ask(client, input=["a river"], model=None))
    )


def test_several_instructions_give_all_inputs_under_each(client: TestClient, offline: Offline) -> None:
    found = vectors(ask(client, input=TEXTS, instruction=[FREE, COMPILED]))
    expected = np.concatenate([offline(TEXTS, FREE), offline(TEXTS, COMPILED)])
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_token_ids_are_the_text_they_stand_for(client: TestClient, offline: Offline) -> None:
    tokenizer = client.app.state.server.service.model.tokenizer
    ids = tokenizer(TEXTS[:2], add_special_tokens=False, return_attention_mask=False)["input_ids"]
    np.testing.assert_allclose(vectors(ask(client, input=ids)), offline(TEXTS[:2]), atol=1e-5)
    np.testing.assert_allclose(vectors(ask(client, input=ids[0])), offline(TEXTS[:1]), atol=1e-5)


def test_base64_holds_the_same_numbers_as_little_endian_float32(client: TestClient) -> None:
    plain = vectors(ask(client, input=TEXTS))
    coded = ask(client, input=TEXTS, encoding_format="base64")
    decoded = [np.frombuffer(base64.b64decode(one["embedding"]), dtype="<f4") for one in coded["data"]]
    np.testing.assert_array_equal(np.stack(decoded), plain)


@pytest.mark.parametrize("dimensions", [1, 7, 40])
def test_fewer_dimensions_are_the_first_ones_at_length_one(client: TestClient, dimensions: int) -> None:
    whole = vectors(ask(client, input=TEXTS))
    short = vectors(ask(client, input=TEXTS, dimensions=dimensions))
    expected = whole[:, :dimensions] / np.linalg.norm(whole[:, :dimensions], axis=1, keepdims=True)
    np.testing.assert_allclose(short, expected, atol=1e-6)


def test_usage_counts_the_tokens_that_were_read(client: TestClient) -> None:
    service = client.app.state.server.service
    tokenizer = service.model.encoder.reader.tokenizer
    expected = sum(len(tokenizer.prefix) + len(ids) for ids in tokenizer.text_ids(["a river", "short"]))
    assert ask(client, input=["a river", "short"])["usage"] == {"prompt_tokens": expected, "total_tokens": expected}
    cut = ask(client, input="long " * 50, truncate="right")
    assert cut["usage"]["prompt_tokens"] == service.max_input_tokens == 32
    assert cut["truncated_inputs"] == 1


def test_a_long_text_is_refused_or_cut_at_the_end_that_was_asked_for(serve: Serve, offline: Offline) -> None:
    client, words = serve(), [f"w{n}" for n in range(40)]
    text = " ".join(words)
    error = refused(client.post("/v1/embeddings", json={"input": ["short", text]}), 422)
    assert error["code"] == "input_too_long"
    assert error["message"].startswith("input 1 has ")
    right = vectors(ask(client, input=text, truncate="right"))
    np.testing.assert_allclose(right, offline([text]), atol=1e-5)
    left = vectors(ask(client, input=text, truncate="left"))
    tokenizer = client.app.state.server.service.model.encoder.reader.tokenizer
    room = 32 - len(tokenizer.prefix)
    ending = tokenizer.text_ids([text])[0][-room:]
    np.testing.assert_allclose(left, vectors(ask(client, input=ending)), atol=1e-6)
    assert float(left[0] @ right[0]) < 0.999
    by_default = serve(truncate="left")
    np.testing.assert_array_equal(vectors(ask(by_default, input=text)), left)


def test_compiled_instructions_are_models_of_their_own(client: TestClient, offline: Offline) -> None:
    listed = client.get("/v1/models").json()
    assert listed["object"] == "list"
    by_instruction = {one["instruction"]: one["id"] for one in listed["data"]}
    assert by_instruction[None] == "tiny"
    assert by_instruction[QUERY] == "tiny@query"
    for text, name in by_instruction.items():
        np.testing.assert_allclose(vectors(ask(client, input=TEXTS, model=name)), offline(TEXTS, text), atol=1e-5)


def test_without_free_instructions_the_prompter_is_not_loaded(serve: Serve, offline: Offline) -> None:
    client = serve(instructions="compiled")
    assert client.app.state.server.service.model.encoder.prompter is None
    found = vectors(ask(client, input=TEXTS, instruction=COMPILED))
    np.testing.assert_allclose(found, offline(TEXTS, COMPILED), atol=1e-5)
    error = refused(client.post("/v1/embeddings", json={"input": "a", "instruction": FREE}), 400)
    assert error["code"] == "instruction_not_compiled"
    assert "no instruction was given" in refused(client.post("/v1/embeddings", json={"input": "a"}), 400)["message"]


def shortly(value: object) -> str:
    return repr(value)[:60]


LIMITS = Limits(
    max_inputs=3, max_input_chars=50, max_instruction_chars=20, max_instructions=2, max_waiting=5, max_body_bytes=5000
)


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({}, 400, "missing_field"),
        ([], 400, "invalid_value"),
        ("text", 400, "invalid_value"),
        ({"input": None}, 400, "invalid_input"),
        ({"input": 7}, 400, "invalid_input"),
        ({"input": {}}, 400, "invalid_input"),
        ({"input": []}, 400, "invalid_input"),
        ({"input": ""}, 400, "invalid_input"),
        ({"input": ["a", ""]}, 400, "invalid_input"),
        ({"input": ["a", 7]}, 400, "invalid_input"),
        ({"input": [1.5]}, 400, "invalid_input"),
        ({"input": [True]}, 400, "invalid_input"),
        ({"input": [[]]}, 400, "invalid_input"),
        ({"input": [["a"]]}, 400, "invalid_input"),
        ({"input": [[3], ["a"]]}, 400, "invalid_input"),
        ({"input": [[-1]]}, 400, "bad_token_id"),
        ({"input": [10**9]}, 400, "bad_token_id"),
        ({"input": [10**30]}, 400, "bad_token_id"),
        ({"input": "a", "model": "other"}, 404, "model_not_found"),
        ({"input": "a", "model": "tiny@other"}, 404, "instruction_not_found"),
        ({"input": "a", "model": "tiny@"}, 404, "instruction_not_found"),
        ({"input": "a", "model": "../../etc/passwd"}, 404, "model_not_found"),
        ({"input": "a", "model": "tiny@query", "instruction": "x"}, 400, "two_instructions"),
        ({"input": "a", "dimensions": 0}, 400, "bad_dimensions"),
        ({"input": "a", "dimensions": -1}, 400, "bad_dimensions"),
        ({"input": "a", "dimensions": 41}, 400, "bad_dimensions"),
        ({"input": "a", "dimensions": "8"}, 400, "invalid_value"),
        ({"input": "a", "dimensions": 8.5}, 400, "invalid_value"),
        ({"input": "a", "encoding_format": "int8"}, 400, "invalid_value"),
        ({"input": "a", "truncate": "middle"}, 400, "invalid_value"),
        ({"input": "a", "instruction": 5}, 400, "invalid_value"),
        ({"input": "a", "instruction": []}, 400, "invalid_value"),
        ({"input": "a", "instructions": "x"}, 400, "unknown_field"),
        ({"input": ["a"] * 4}, 413, "too_many_inputs"),
        ({"input": ["a"] * 3, "instruction": ["x", "y"]}, 413, "too_many_vectors"),
        ({"input": "a" * 51}, 422, "input_too_long"),
        ({"input": "a", "instruction": "x" * 21}, 422, "instruction_too_long"),
        ({"input": "a", "instruction": ["x", "y", "z"]}, 422, "too_many_instructions"),
        ({"input": "a" * 5000}, 413, "body_too_large"),
    ],
    ids=shortly,
)
def test_bad_requests_are_told_what_is_wrong(serve: Serve, body: Any, status: int, code: str) -> None:
    client = serve(limits=LIMITS)
    error = refused(client.post("/v1/embeddings", json=body), status)
    assert (error["code"], error["type"]) == (code, "invalid_request_error")
    assert "a" * 50 not in error["message"]
    assert len(vectors(ask(client, input="still here"))) == 1


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"input": ""}, "input is empty. Send a text or leave it out."),
        ({"input": ["a", ""]}, "input[1] is empty. Send a text or leave it out."),
        ({"input": ["a", 7]}, "input[1] is not valid: input must be a text"),
        ("text", "Send one, with the header Content-Type: application/json."),
        ({"input": "a", "model": "other"}, "no such model is served. Send 'tiny', or one that GET /v1/models lists."),
    ],
)
def test_a_message_says_which_part_is_wrong_and_what_to_send(client: TestClient, body: Any, message: str) -> None:
    """It was "input must be a text ... See input.", "Input should be a valid dictionary", "no such model is served"."""
    assert message in client.post("/v1/embeddings", json=body).json()["error"]["message"]


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b'{"input": "a"', b"\xff\xfe", b'{"input": "\xff"}', b"[" * 3000, b'{"input": NaN}', b"null", b'{"a"}'],
    ids=shortly,
)
def test_what_is_no_json_is_told_so(client: TestClient, content: bytes) -> None:
    headers = {"Content-Type": "application/json"}
    assert refused(client.post("/v1/embeddings", content=content, headers=headers), 400)["param"] in (None, "input")


@pytest.mark.parametrize("escaped", [r'"\ud800"', r'["fine", "\udfff\ud800"]'])
def test_half_an_emoji_is_refused(client: TestClient, escaped: str) -> None:
    content = f'{{"input": {escaped}}}'.encode()
    error = refused(client.post("/v1/embeddings", content=content, headers={"Content-Type": "application/json"}), 400)
    assert (error["code"], error["param"]) == ("invalid_input", "input")


def test_a_special_token_id_is_refused(client: TestClient) -> None:
    special = client.app.state.server.service.model.tokenizer.all_special_ids[0]
    assert refused(client.post("/v1/embeddings", json={"input": [special]}), 400)["code"] == "bad_token_id"


def test_ten_thousand_inputs_and_ten_megabytes_are_refused(client: TestClient) -> None:
    assert refused(client.post("/v1/embeddings", json={"input": ["a"] * 10_000}), 413)["code"] == "too_many_inputs"
    assert refused(client.post("/v1/embeddings", json={"input": "a" * 10**7}), 413)["code"] == "body_too_large"
    assert len(vectors(ask(client, input="still here"))) == 1
