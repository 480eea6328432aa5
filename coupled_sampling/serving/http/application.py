"""`make_app`: the application, an ASGI one that any server runs, or that is mounted in another."""

from __future__ import annotations

from collections.abc import Sequence

from fastapi import FastAPI

from coupled_sampling import __version__
from coupled_sampling.serving.http.chat import chat_routes
from coupled_sampling.serving.http.completions import completion_routes
from coupled_sampling.serving.http.errors import add_handlers
from coupled_sampling.serving.http.images import image_routes
from coupled_sampling.serving.http.listing import listing_routes
from coupled_sampling.serving.http.page import page_routes
from coupled_sampling.serving.http.service import HttpSettings, Service, Watch
from coupled_sampling.serving.served import ServedModel

__all__ = ["make_app"]


class _Unwatched:
    def refused(self, model: str, error: Exception) -> None: ...

    def first(self, model: str, seconds: float) -> None: ...

    def between(self, model: str, seconds: float) -> None: ...

    def ended(self, model: str, seconds: float, reason: str) -> None: ...


def make_app(models: Sequence[ServedModel], settings: HttpSettings | None = None) -> FastAPI:
    """The application over ``models``, which stay open until whoever opened them closes them.

    Parameters
    ----------
    models
        The models; names are unique.
    settings
        What is allowed.
    """
    watch: Watch = _Unwatched()
    service = Service(models, settings or HttpSettings(), watch)
    app = FastAPI(title="coupled-sampling", version=__version__, docs_url=None, redoc_url=None)
    add_handlers(app)
    for routes in (listing_routes, completion_routes, chat_routes, image_routes, page_routes):
        app.include_router(routes(service))
    return app
