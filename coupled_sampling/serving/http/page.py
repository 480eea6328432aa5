"""The page at ``/``: a prompt, and two methods beside each other while they answer it.

Its files lie in the folder ``page`` and are served as they are. It asks this application as any client does, with the key that its
visitor writes, loads nothing from elsewhere, and the browser is told to let it do no more than that.
"""

from __future__ import annotations

from importlib.resources import files

from fastapi import APIRouter
from fastapi.responses import Response

from coupled_sampling.serving.http.errors import ApiError
from coupled_sampling.serving.http.service import Service

__all__ = ["page_routes"]

_TYPES = {
    "index.html": "text/html; charset=utf-8",
    "page.css": "text/css; charset=utf-8",
    "page.js": "text/javascript; charset=utf-8",
    "panel.js": "text/javascript; charset=utf-8",
    "player.js": "text/javascript; charset=utf-8",
    "sheet.js": "text/javascript; charset=utf-8",
    "events.js": "text/javascript; charset=utf-8",
    "icon.svg": "image/svg+xml",
}

_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


def page_routes(service: Service) -> APIRouter:
    """The routes, which need no key: what they serve is the same for everybody. ``service`` is what all routes are given."""
    routes = APIRouter(include_in_schema=False)
    folder = files(__package__) / "page"
    contents = {name: (folder / name).read_bytes() for name in _TYPES}

    @routes.api_route("/", methods=["GET", "HEAD"])
    async def index() -> Response:
        """The page."""
        return Response(contents["index.html"], media_type=_TYPES["index.html"], headers=_HEADERS)

    @routes.api_route("/page/{name}", methods=["GET", "HEAD"])
    async def asset(name: str) -> Response:
        """A file of it."""
        if name not in contents:
            raise ApiError(404, f"there is no GET /page/{name[:100]} here")
        return Response(contents[name], media_type=_TYPES[name], headers=_HEADERS)

    return routes
