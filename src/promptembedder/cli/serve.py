"""`promptembedder serve MODEL`: an OpenAI-compatible embeddings server."""

import functools
import ipaddress
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from promptembedder.cli.console import Report, importing, one_line_errors
from promptembedder.cli.options import ConfigOption, JsonOption, QuantizationOption, ReaderOption
from promptembedder.errors import ConfigError
from promptembedder.extras import require
from promptembedder.storage import read_manifest

if TYPE_CHECKING:
    from promptembedder.server import ApiKeys, EmbeddingService, ServerSettings, ServerState, Tracer

__all__ = ["serve"]

KEYS_VARIABLE = "PROMPTEMBEDDER_API_KEYS"


def serve(
    model: Annotated[Path, typer.Argument(help="Folder of a saved model.")],
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on.")] = 8000,
    model_name: Annotated[
        str | None, typer.Option(help="What clients call the model; by default its folder's name.")
    ] = None,
    instructions: Annotated[
        str, typer.Option(help="free: any that a client writes; compiled: those of the model, without the prompter.")
    ] = "free",
    truncate: Annotated[
        str, typer.Option(help="Texts that are too long: error, or left or right, the end to cut off.")
    ] = "error",
    api_keys_file: Annotated[
        Path | None, typer.Option(help=f"File of API keys, one a line; or the variable {KEYS_VARIABLE}.")
    ] = None,
    without_keys: Annotated[
        bool, typer.Option("--without-keys", help="Listen on other addresses than this machine's own without keys.")
    ] = False,
    max_batch_tokens: Annotated[
        int | None,
        typer.Option(help="Tokens read at once, padding included; by default 2048 on a CPU, 16384 on a GPU."),
    ] = None,
    max_waiting: Annotated[int, typer.Option(help="Vectors that may wait at once; beyond them 429.")] = 2048,
    max_inputs: Annotated[int, typer.Option(help="Texts of a request.")] = 2048,
    max_body_bytes: Annotated[int, typer.Option(help="Of a request.")] = 4_000_000,
    max_input_chars: Annotated[int, typer.Option(help="Characters of a text.")] = 200_000,
    max_instruction_chars: Annotated[int, typer.Option(help="Characters of an instruction.")] = 2000,
    max_cached_instructions: Annotated[int, typer.Option(help="Free instructions whose soft tokens are kept.")] = 1024,
    deadline_s: Annotated[float, typer.Option(help="Seconds after which a request is given up.")] = 60.0,
    drain_s: Annotated[float, typer.Option(help="Seconds that requests under way get after SIGTERM.")] = 30.0,
    warmup: Annotated[
        str, typer.Option(help="Computed before the server is ready: none, min (one text), full (a whole batch).")
    ] = "min",
    log_format: Annotated[str, typer.Option(help="Of the lines on stderr: text or json.")] = "text",
    otlp_endpoint: Annotated[
        str | None, typer.Option(help="OpenTelemetry collector that gets a span a request: http://HOST:4318/v1/traces.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1; by default a GPU where there is one.")] = None,
    reader: ReaderOption = None,
    quantization: QuantizationOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Answer embedding requests as OpenAI's API does, under any instruction, from one loaded LLM.

    Example: promptembedder serve runs/quickstart --port 8000

    It stops at SIGTERM: requests under way finish, new ones get 503.
    """
    report = Report(as_json)
    with one_line_errors():
        read_manifest(model)  # before seconds of imports
        for module in ("fastapi", "orjson", "prometheus_client", "uvicorn"):
            require(module, extra="serve")
        # before torch is imported, which reads it once: of oneDNN, which keeps a kernel for each shape that it has
        # multiplied, 1024 by default, hundreds of megabytes where texts have every length
        os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")
        with importing():  # seconds
            from promptembedder.server import ApiKeys, ComputeSettings, Limits, ServerSettings, listening_socket, otlp_tracer

        settings = ServerSettings(
            model_name=model_name or model.resolve().name.replace("@", "-"),
            instructions=instructions,
            truncate=truncate,
            limits=Limits(
                max_waiting=max_waiting,
                max_body_bytes=max_body_bytes,
                max_inputs=max_inputs,
                max_input_chars=max_input_chars,
                max_instruction_chars=max_instruction_chars,
                deadline_s=deadline_s,
            ),
            compute=ComputeSettings(
                max_batch_tokens=max_batch_tokens,
                max_cached_instructions=max_cached_instructions,
                warmup=warmup,
            ),
        )
        keys = ApiKeys(_keys(api_keys_file))
        if not (keys or without_keys or _is_loopback(host)):
            raise ConfigError(
                f"{host} can be reached from other machines and no API key is set. "
                f"Set {KEYS_VARIABLE} or --api-keys-file, or say --without-keys."
            )
        if log_format not in ("text", "json"):
            raise ConfigError(f"--log-format must be text or json, got {log_format!r}.")
        tracer = None if otlp_endpoint is None else otlp_tracer(otlp_endpoint)
        bound = listening_socket(host, port)
        load = functools.partial(_load, model, settings, reader, quantization, device)
        report.say(
            f"serving {settings.model_name} on http://{host}:{bound.getsockname()[1]} (page /, API /docs); "
            "stop with Ctrl-C"
        )
        _run(load, settings, keys, bound, tracer=tracer, drain_s=drain_s, log_format=log_format)
    report.result({"model": settings.model_name, "stopped": True})


def _load(
    model: Path,
    settings: "ServerSettings",
    reader: str | None,
    quantization: str | None,
    device: str | None,
    state: "ServerState",
) -> "EmbeddingService":
    from promptembedder.server import load_service

    return load_service(model, settings, state.metrics, reader=reader, quantization=quantization, device=device)


def _run(
    load: "Callable[[ServerState], EmbeddingService]",
    settings: "ServerSettings",
    keys: "ApiKeys",
    bound: socket.socket,
    *,
    tracer: "Tracer | None",
    drain_s: float,
    log_format: str,
) -> None:
    from promptembedder.server import ServerState, create_app, log_to_stderr, run_server

    log_to_stderr(log_format)  # type: ignore[arg-type]
    failed: list[Exception] = []
    state = ServerState()

    def on_failure(error: Exception) -> None:
        failed.append(error)
        state.stop()

    app = create_app(load, state=state, keys=keys, limits=settings.limits, tracer=tracer, on_failure=on_failure)
    run_server(app, bound=bound, state=state, drain_s=drain_s)
    if failed:
        raise failed[0]


def _keys(path: Path | None) -> list[str]:
    """API keys from the file and the environment; never from the command line, which everybody on the machine sees."""
    listed = os.environ.get(KEYS_VARIABLE, "").split(",")
    if path is not None:
        try:
            listed += path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"cannot read the API keys in {path}: {error}. One key a line, UTF-8.") from error
    keys = [key.strip() for key in listed if key.strip() and not key.strip().startswith("#")]
    if path is not None and not keys:
        raise ConfigError(f"{path} holds no API key. Write one a line.")
    return keys


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
