"""`promptembedder serve MODEL`: run an OpenAI-compatible embeddings server."""

import ipaddress
import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from promptembedder.cli.console import Report, gc_paused
from promptembedder.cli.options import (
    ConfigOption,
    DeviceOption,
    DimensionsOption,
    EarlyExitOption,
    JsonOption,
    MaxLengthOption,
    QuantizationOption,
    ReaderOption,
)
from promptembedder.errors import ConfigError
from promptembedder.extras import require
from promptembedder.storage import read_manifest

if TYPE_CHECKING:
    from promptembedder.server import ApiKeys, EmbeddingService, ReadingConfig, ServerConfig, Tracer

__all__ = ["serve"]

KEYS_VARIABLE = "PROMPTEMBEDDER_API_KEYS"


def serve(
    model: Annotated[Path, typer.Argument(help="Folder of a saved model.")],
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on.")] = 8000,
    model_name: Annotated[
        str | None, typer.Option(help="Name of the model for clients. Default: the folder's name.")
    ] = None,
    instructions: Annotated[
        str, typer.Option(help="free (any instruction) or compiled (only those of the model, no prompter loaded).")
    ] = "free",
    truncate: Annotated[
        str, typer.Option(help="Handling of texts that are too long: error, or truncate on the left or right.")
    ] = "error",
    api_keys_file: Annotated[
        Path | None, typer.Option(help=f"File of API keys, one per line. Alternative: the variable {KEYS_VARIABLE}.")
    ] = None,
    without_keys: Annotated[
        bool, typer.Option("--without-keys", help="Allow addresses other than loopback without API keys.")
    ] = False,
    max_batch_tokens: Annotated[
        int | None,
        typer.Option(help="Maximum tokens per batch, padding included. Default: 2048 on a CPU, 16384 on a GPU."),
    ] = None,
    max_waiting: Annotated[int, typer.Option(help="Maximum queued vectors. Further requests get 429.")] = 2048,
    max_inputs: Annotated[int, typer.Option(help="Maximum texts per request.")] = 2048,
    max_body_bytes: Annotated[int, typer.Option(help="Maximum request body size in bytes.")] = 4_000_000,
    max_input_chars: Annotated[int, typer.Option(help="Maximum characters per text.")] = 200_000,
    max_instruction_chars: Annotated[int, typer.Option(help="Maximum characters per instruction.")] = 2000,
    max_cached_instructions: Annotated[
        int, typer.Option(help="Number of free instructions with cached soft tokens.")
    ] = 1024,
    deadline_s: Annotated[float, typer.Option(help="Request timeout in seconds.")] = 60.0,
    drain_s: Annotated[float, typer.Option(help="Seconds to finish running requests after SIGTERM.")] = 30.0,
    warmup: Annotated[
        str, typer.Option(help="Computation before the server is ready: none, min (one text) or full (one batch).")
    ] = "min",
    log_format: Annotated[str, typer.Option(help="Log format on stderr: text or json.")] = "text",
    otlp_endpoint: Annotated[
        str | None, typer.Option(help="OpenTelemetry collector for one span per request: http://HOST:4318/v1/traces.")
    ] = None,
    device: DeviceOption = None,
    reader: ReaderOption = None,
    quantization: QuantizationOption = None,
    early_exit_fraction: EarlyExitOption = None,
    max_length: MaxLengthOption = None,
    dimensions: DimensionsOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Serve embeddings over OpenAI's API, under any instruction, from one loaded LLM.

    Example: promptembedder serve runs/quickstart --port 8000

    On SIGTERM, running requests finish and new ones get 503.
    """
    report = Report(as_json)
    read_manifest(model)  # fail before the slow imports
    for module in ("fastapi", "orjson", "prometheus_client", "uvicorn"):
        require(module, extra="serve")
    # set before torch reads it at import: oneDNN caches one kernel per matrix shape, by default 1024, which is
    # hundreds of megabytes when texts have all lengths
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")
    with gc_paused():  # seconds
        from promptembedder.server import (
            ApiKeys,
            ComputeConfig,
            Limits,
            ReadingConfig,
            ServerConfig,
            bind_socket,
            log_to_stderr,
            otlp_tracer,
        )

    server_config = ServerConfig(
        model_name=model_name or model.resolve().name.replace("@", "-"),
        instructions=instructions,
        truncate=truncate,
        dimensions=dimensions,
        limits=Limits(
            max_waiting=max_waiting,
            max_body_bytes=max_body_bytes,
            max_inputs=max_inputs,
            max_input_chars=max_input_chars,
            max_instruction_chars=max_instruction_chars,
            deadline_s=deadline_s,
        ),
        compute=ComputeConfig(
            max_batch_tokens=max_batch_tokens,
            max_cached_instructions=max_cached_instructions,
            warmup=warmup,
        ),
    )
    reading = ReadingConfig(
        reader=reader,
        quantization=quantization,
        early_exit_fraction=early_exit_fraction,
        max_length=max_length,
        device=device,
    )
    keys = ApiKeys(_read_keys(api_keys_file))
    if not (keys or without_keys or _is_loopback(host)):
        raise ConfigError(
            f"{host} is reachable from other machines and no API key is set. "
            f"Set {KEYS_VARIABLE} or --api-keys-file, or add --without-keys."
        )
    if log_format not in ("text", "json"):
        raise ConfigError(f"--log-format must be text or json, got {log_format!r}.")
    tracer = None if otlp_endpoint is None else otlp_tracer(otlp_endpoint)
    bound = bind_socket(host, port)
    name = server_config.model_name
    report.print(f"serving {name} on http://{host}:{bound.getsockname()[1]} (page /, API /docs); stop with Ctrl-C")
    log_to_stderr(log_format)  # type: ignore[arg-type]
    _run(model, server_config, reading, keys, bound, tracer=tracer, drain_s=drain_s)
    report.result({"model": name, "stopped": True})


def _run(
    model: Path,
    server_config: "ServerConfig",
    reading: "ReadingConfig",
    keys: "ApiKeys",
    bound: socket.socket,
    *,
    tracer: "Tracer | None",
    drain_s: float,
) -> None:
    from promptembedder.server import ServerState, create_app, load_service, run_server

    failed: list[Exception] = []
    state = ServerState()

    def load(state: ServerState) -> "EmbeddingService":
        return load_service(model, server_config, state.metrics, reading=reading)

    def on_failure(error: Exception) -> None:
        failed.append(error)
        state.stop()

    app = create_app(load, state=state, keys=keys, limits=server_config.limits, tracer=tracer, on_failure=on_failure)
    run_server(app, bound=bound, state=state, drain_s=drain_s)
    if failed:
        raise failed[0]


def _read_keys(path: Path | None) -> list[str]:
    """Read API keys from the file and the environment. Command lines are visible to all users of the machine."""
    listed = os.environ.get(KEYS_VARIABLE, "").split(",")
    if path is not None:
        try:
            listed += path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(
                f"cannot read the API keys in {path}: {error}. Write one key per line in UTF-8."
            ) from error
    keys = [key.strip() for key in listed if key.strip() and not key.strip().startswith("#")]
    if path is not None and not keys:
        raise ConfigError(f"{path} contains no API key. Write one per line.")
    return keys


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
