"""``GET /v1/models``, ``/health`` and ``/health/live``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter
from fastapi.responses import JSONResponse

from coupled_sampling.serving.engine import Health
from coupled_sampling.serving.http.service import Service
from coupled_sampling.serving.served import ServedModel

__all__ = ["listing_routes"]


def listing_routes(service: Service) -> APIRouter:
    """The routes."""
    routes = APIRouter()

    @routes.get("/v1/models")
    async def models() -> dict[str, Any]:
        """The models that are served."""
        return {"object": "list", "data": [_described(model) for model in service.models.values()]}

    @routes.get("/v1/models/{name}")
    async def model(name: str) -> dict[str, Any]:
        """One of them."""
        return _described(service.find(name))

    @routes.get("/health")
    async def health() -> JSONResponse:
        """200 where every model takes requests, else 503 and why not: whether to send requests here."""
        found = {name: await model.source.health() for name, model in service.models.items()}
        if service.traffic.draining:
            found = {name: Health(False, one.alive, "the server is draining") for name, one in found.items()}
        return _told(found, all(one.ready for one in found.values()))

    @routes.get("/health/live")
    async def live() -> JSONResponse:
        """200 where every model works, even if it takes no requests, else 503: whether to start the server again."""
        found = {name: await model.source.health() for name, model in service.models.items()}
        return _told(found, all(one.alive for one in found.values()))

    return routes


def _told(found: Mapping[str, Health], well: bool) -> JSONResponse:
    body = {name: {"ready": one.ready, "alive": one.alive, "why": one.why} for name, one in found.items()}
    return JSONResponse(body, 200 if well else 503)


def _described(model: ServedModel) -> dict[str, Any]:
    manifest = model.bundle.manifest
    return {
        "id": model.name,
        "object": "model",
        "created": model.created,
        "owned_by": "coupled-sampling",
        "makes_pictures": model.makes_pictures,
        "prompts": list(manifest.prompts),
        "grid": None if manifest.grid is None else [manifest.grid.rows, manifest.grid.columns],
        "length": manifest.length,
        "chat": model.template is not None,
    }
