"""`make_app`: the application, an ASGI one that any server runs, or that is mounted in another."""

from __future__ import annotations

from collections.abc import Sequence

from fastapi import FastAPI
from fastapi.responses import PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import Response

from coupled_sampling import __version__
from coupled_sampling.serving.http.chat import chat_routes
from coupled_sampling.serving.http.completions import completion_routes
from coupled_sampling.serving.http.errors import RESPONSES, add_handlers
from coupled_sampling.serving.http.guards import Bodies, Draining, Keys, RequestIds
from coupled_sampling.serving.http.images import image_routes
from coupled_sampling.serving.http.listing import listing_routes
from coupled_sampling.serving.http.metrics import Metrics
from coupled_sampling.serving.http.page import page_routes
from coupled_sampling.serving.http.service import HttpSettings, Service
from coupled_sampling.serving.served import ServedModel

__all__ = ["make_app"]


def make_app(models: Sequence[ServedModel], settings: HttpSettings | None = None) -> FastAPI:
    """The application over ``models``, which stay open until whoever opened them closes them.

    Parameters
    ----------
    models
        The models; names are unique.
    settings
        What is allowed.

    Returns
    -------
    FastAPI
        ``app.state.service`` is what its routes work on: a `Service`.

    Raises
    ------
    InvalidArgument
        Two models have one name.

    Examples
    --------
    >>> import asyncio
    >>> import httpx
    >>> from coupled_sampling import open_bundle
    >>> from coupled_sampling.serving import Lanes, LaneSettings, ServedModel
    >>> from coupled_sampling.serving.http import HttpSettings, make_app
    >>> async def names(app):
    ...     async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://here") as client:
    ...         listed = (await client.get("/v1/models", headers={"Authorization": "Bearer 8cd1"})).json()
    ...     return [model["id"] for model in listed["data"]]
    >>> with Lanes(lambda: open_bundle("fashion"), LaneSettings(rows=1)) as lanes:
    ...     app = make_app([ServedModel("clothes", lanes.bundle, lanes)], HttpSettings(keys=("8cd1",)))
    ...     asyncio.run(names(app))
    ['clothes']
    """
    settings = settings or HttpSettings()
    metrics = Metrics()
    service = Service(models, settings, metrics)
    app = FastAPI(title="coupled-sampling", version=__version__, docs_url=None, redoc_url=None, responses=RESPONSES)
    app.state.service = service
    add_handlers(app)
    for routes in (listing_routes, completion_routes, chat_routes, image_routes, page_routes):
        app.include_router(routes(service))

    @app.get("/metrics", response_class=PlainTextResponse)
    async def told() -> Response:
        """What was done so far, for Prometheus."""
        return Response(await metrics.text(service.models.values()), media_type=CONTENT_TYPE_LATEST)

    # The last one stands outside: a request is named, then counted, then asked for its key, and only then read.
    app.add_middleware(Bodies, most=settings.most_body, seconds=settings.body_seconds)
    if settings.keys:
        app.add_middleware(Keys, keys=settings.keys)
    app.add_middleware(Draining, traffic=service.traffic)
    app.add_middleware(RequestIds)
    return app
