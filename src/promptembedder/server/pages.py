"""HTML pages: a demo at `/` and the API documentation at `/docs`."""

import secrets
from importlib import resources

from fastapi import APIRouter
from fastapi.responses import HTMLResponse

__all__ = ["router"]

router = APIRouter(include_in_schema=False)


@router.get("/")
async def home() -> HTMLResponse:
    """Return the demo page."""
    return _page("home.html")


@router.get("/docs")
async def docs() -> HTMLResponse:
    """Return the page that renders the OpenAPI document. It loads nothing from other servers."""
    return _page("docs.html")


def _page(name: str) -> HTMLResponse:
    """Build a page with a Content-Security-Policy: only scripts with the nonce run, so pasted text never executes."""
    nonce = secrets.token_urlsafe(16)
    content = resources.files("promptembedder.server").joinpath(name).read_text(encoding="utf-8")
    policy = (
        f"default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    headers = {"Content-Security-Policy": policy, "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"}
    return HTMLResponse(content.replace("{{nonce}}", nonce), headers=headers)
