"""Whatever fits the OpenAPI document, and whatever does not, gets an answer that the document knows."""

import threading
from collections.abc import Callable, Iterator

import pytest
import schemathesis
import uvicorn
from hypothesis import HealthCheck, given, settings
from starlette.testclient import TestClient

from promptembedder.server import Limits, bind_socket

OPERATIONS = ["POST /v1/embeddings", "GET /v1/models", "POST /embed", "GET /info", "GET /health", "GET /metrics"]


@pytest.fixture(scope="module")
def api(serve: Callable[..., TestClient]) -> Iterator[schemathesis.schemas.BaseSchema]:
    """Over a real socket: called in this process it would start and stop the application for each request."""
    app = serve(limits=Limits(max_inputs=50), truncate="right").app
    bound = bind_socket("127.0.0.1", 0)
    server = uvicorn.Server(uvicorn.Config(app, lifespan="off", log_config=None))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
    thread.start()
    yield schemathesis.openapi.from_url(f"http://127.0.0.1:{bound.getsockname()[1]}/openapi.json")
    server.should_exit = True
    thread.join()


def test_every_route_of_the_document_is_tried(api: schemathesis.schemas.BaseSchema) -> None:
    assert sorted(one.ok().label for one in api.get_all_operations()) == sorted(OPERATIONS)


@pytest.mark.filterwarnings("ignore:Do not use the `random` module inside strategies")  # schemathesis' own
# a request without body or parameters cannot be wrong
@pytest.mark.parametrize(
    ("label", "mode"),
    [
        *((label, schemathesis.GenerationMode.POSITIVE) for label in OPERATIONS),
        *((label, schemathesis.GenerationMode.NEGATIVE) for label in OPERATIONS if label.startswith("POST")),
    ],
    ids=str,
)
def test_every_answer_is_one_of_those_that_the_document_names(
    api: schemathesis.schemas.BaseSchema, label: str, mode: schemathesis.GenerationMode
) -> None:
    operation = next(one.ok() for one in api.get_all_operations() if one.ok().label == label)

    @given(case=operation.as_strategy(generation_mode=mode))
    @settings(suppress_health_check=list(HealthCheck), derandomize=True)
    def tried(case: schemathesis.Case) -> None:
        case.call_and_validate(
            # what fits the document may still name an instruction that is not there, or a token that is none
            excluded_checks=[schemathesis.checks.positive_data_acceptance]
        )

    tried()
