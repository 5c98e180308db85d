"""The pages for people: nothing from outside, and they work in a browser."""

import re
import shutil
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np
import pytest
import uvicorn
from starlette.testclient import TestClient

from promptembedder.server import bind_socket

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

TEXTS = ["a red house", "the river is cold", "<b>fast</b> & <script>x()"]
INSTRUCTIONS = ["Find texts about the same thing", "Find texts with the same mood"]


@pytest.mark.parametrize("path", ["/", "/docs"])
def test_a_page_loads_nothing_from_elsewhere_and_runs_its_own_script_alone(client: TestClient, path: str) -> None:
    first, second = client.get(path), client.get(path)
    policy = first.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'nonce-")
    nonces = re.findall(r"nonce-([\w-]+)'", policy)
    assert nonces[0] == nonces[1]
    assert nonces[0] not in second.text
    assert first.text.count(f'nonce="{nonces[0]}"') == 2
    assert "{{" not in first.text
    assert not re.findall(r"""(?:src|href|@import|url\()\s*=?\s*["']?(?:https?:)?//""", first.text)
    assert "unsafe" not in policy


@pytest.fixture(scope="module")
def url(serve: Callable[..., TestClient]) -> Iterator[str]:
    bound = bind_socket("127.0.0.1", 0)
    server = uvicorn.Server(uvicorn.Config(serve().app, lifespan="off", log_config=None))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
    thread.start()
    yield f"http://127.0.0.1:{bound.getsockname()[1]}"
    server.should_exit = True
    thread.join()


@pytest.fixture(scope="module")
def browser() -> "Iterator[Chrome]":
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("no chromium and chromedriver on this machine (Debian: chromium, chromium-driver)")
    from selenium.webdriver import Chrome, ChromeOptions, ChromeService

    options = ChromeOptions()
    options.binary_location = chromium
    for word in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(word)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    opened = Chrome(options=options, service=ChromeService(driver))
    yield opened
    opened.quit()


def fill(browser: "Chrome", place: str, text: str) -> None:
    field = browser.find_element("id", place)
    field.clear()
    field.send_keys(text)


def pressed(browser: "Chrome", button: str, place: str) -> str:
    """What the page says once the work behind the button is done."""
    from selenium.webdriver.support.ui import WebDriverWait

    browser.find_element("id", button).click()
    WebDriverWait(browser, 60).until(lambda page: page.find_element("id", button).is_enabled())
    return str(browser.find_element("id", place).text)


def test_texts_are_compared_under_each_instruction(
    browser: "Chrome", url: str, offline: Callable[..., np.ndarray]
) -> None:
    browser.get(url)
    fill(browser, "texts", "\n".join(TEXTS))
    fill(browser, "instructions", "\n".join(INSTRUCTIONS))
    assert re.fullmatch(r"3 texts under 2 instructions in [\d.]+ s", pressed(browser, "compare", "compared"))
    figures = browser.find_elements("css selector", "#matrices figure")
    assert [figure.find_element("tag name", "figcaption").text for figure in figures] == INSTRUCTIONS
    for figure, instruction in zip(figures, INSTRUCTIONS, strict=True):
        vectors = offline(TEXTS, instruction)
        shown = [float(cell.text) for cell in figure.find_elements("css selector", "td")]
        np.testing.assert_allclose(np.array(shown).reshape(3, 3), vectors @ vectors.T, atol=0.0051)
        assert figure.find_elements("css selector", "tbody th")[2].get_attribute("title") == TEXTS[2]


def test_a_small_corpus_is_searched(browser: "Chrome", url: str, offline: Callable[..., np.ndarray]) -> None:
    browser.get(url)
    fill(browser, "corpus", "\n".join(TEXTS))
    fill(browser, "query", "what is cold?")
    fill(browser, "query-instruction", INSTRUCTIONS[0])
    assert pressed(browser, "search", "searched").startswith("3 texts in ")
    scores = offline(TEXTS) @ offline(["what is cold?"], INSTRUCTIONS[0])[0]
    expected = [f"{scores[row]:.3f}{TEXTS[row]}" for row in np.argsort(-scores)]
    hits = [hit.text.replace("\n", "").replace(" ", "") for hit in browser.find_elements("css selector", "#hits li")]
    assert hits == [hit.replace(" ", "") for hit in expected]


def test_what_the_server_refuses_is_said_on_the_page(browser: "Chrome", url: str) -> None:
    browser.get(url)
    fill(browser, "texts", "only one")
    assert pressed(browser, "compare", "compared") == "Write at least two texts."
    fill(browser, "texts", "one\n" + "word " * 200)
    assert "tokens, maximum" in pressed(browser, "compare", "compared")


def test_the_api_page_shows_every_route(browser: "Chrome", url: str, client: TestClient) -> None:
    from selenium.webdriver.support.ui import WebDriverWait

    browser.get(f"{url}/docs")
    WebDriverWait(browser, 30).until(lambda page: page.find_elements("tag name", "h2"))
    shown = [one.text for one in browser.find_elements("tag name", "h2")]
    paths = client.get("/openapi.json").json()["paths"]
    assert shown[: len(paths)] == [f"{method.upper()} {path}" for path, ways in paths.items() for method in ways]
    errors = [one for one in browser.get_log("browser") if one["level"] == "SEVERE"]
    # the two refused requests of the test before are told there, and nothing else
    assert all("422" in one["message"] for one in errors)
