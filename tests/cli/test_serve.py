"""Laws of `promptembedder serve` before it serves; what it then does is in tests/server."""

import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import Result

from promptembedder import PromptEmbedder

Run = Callable[..., Result]
Refused = Callable[..., str]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--host", "0.0.0.0"), "is reachable from other machines and no API key is set"),
        (("--host", "example.org"), "is reachable from other machines and no API key is set"),
        (("--host", "::"), "is reachable from other machines and no API key is set"),
        (("--host", "192.0.2.1", "--without-keys"), "cannot listen on 192.0.2.1"),
        (("--instructions", "some"), "instructions must be free or compiled"),
        (("--truncate", "both"), "truncate must be error, left or right"),
        (("--warmup", "hot"), "warmup must be none, min or full"),
        (("--max-inputs", "0"), "max_inputs must be more than 0"),
        (("--max-batch-tokens", "0"), "max_batch_tokens must be at least 1"),
        (("--deadline-s", "-1"), "deadline_s must be more than 0"),
        (("--model-name", "a@b"), "without '@'"),
        (("--api-keys-file", "/no/such/file"), "cannot read the API keys"),
        (("--log-format", "xml"), "--log-format must be text or json"),
    ],
    ids=str,
)
def test_invalid_options_are_one_line_errors_before_loading(
    refused: Refused, saved_model: Path, loaded: list[PromptEmbedder], words: tuple[str, ...], said: str
) -> None:
    assert said in refused("serve", saved_model, *words)
    assert loaded == []


def test_missing_model_and_invalid_key_files_are_refused(refused: Refused, saved_model: Path, tmp_path: Path) -> None:
    assert "is not a saved model" in refused("serve", tmp_path)
    keys = tmp_path / "keys"
    keys.write_text("# none yet\n\n")
    assert "contains no API key" in refused("serve", saved_model, "--api-keys-file", keys)
    keys.write_text("short\n")
    assert "fewer than 16 characters" in refused("serve", saved_model, "--api-keys-file", keys)
    keys.write_bytes(b"\xff\xfe\xff")
    assert "cannot read the API keys" in refused("serve", saved_model, "--api-keys-file", keys)


def test_port_in_use_is_a_one_line_error(refused: Refused, saved_model: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        said = refused("serve", saved_model, "--port", taken.getsockname()[1])
    assert "address already in use. Try another --port" in said


def test_api_keys_are_not_accepted_on_the_command_line(run: Run, saved_model: Path) -> None:
    assert run("serve", saved_model, "--api-keys", "k-0123456789abcdef").exit_code == 2
    assert "--api-key " not in run("serve", "--help").stdout
