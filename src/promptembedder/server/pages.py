"""The pages for people: `/` to try instructions out, `/docs` to read what can be asked."""

import secrets
from importlib import resources

from fastapi import APIRouter
from fastapi.responses import HTMLResponse

__all__ = ["router"]

router = APIRouter(include_in_schema=False)


@router.get("/")
async def home() -> HTMLResponse:
    """Texts and instructions to try."""
    return _page("home.html")


@router.get("/docs")
async def docs() -> HTMLResponse:
    """The OpenAPI document, readable; nothing of it comes from other servers."""
    return _page("docs.html")


def _page(name: str) -> HTMLResponse:
    """A page whose scripts run by a nonce: a text that somebody pastes into it can never become one."""
    nonce = secrets.token_urlsafe(16)
    content = resources.files("promptembedder.server").joinpath(name).read_text(encoding="utf-8")
    policy = (
        f"default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    headers = {"Content-Security-Policy": policy, "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"}
    return HTMLResponse(content.replace("{{nonce}}", nonce), headers=headers)
