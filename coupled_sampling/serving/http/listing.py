"""``GET /v1/models``, ``/health`` and ``/health/live``."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter
from fastapi.responses import JSONResponse

from coupled_sampling.animations import FPS
from coupled_sampling.serving.engine import Health
from coupled_sampling.serving.http.service import Service
from coupled_sampling.serving.served import ServedModel

__all__ = ["listing_routes"]

_LOG = logging.getLogger("coupled_sampling.serving")


def listing_routes(service: Service) -> APIRouter:
    """The routes."""
    routes = APIRouter()
    logged: dict[str, str | None] = {}

    def told(found: Mapping[str, Health], well: bool) -> JSONResponse:
        """What is told to anybody: what a model failed of may name files of this machine, and goes to the log."""
        body = {}
        for name, one in found.items():
            why = one.why if one.alive else "the model does not work; the server's log says more"
            body[name] = {"ready": one.ready, "alive": one.alive, "why": why}
            kept = (
                None if one.alive else re.sub(r"\d+ s\b", "", str(one.why))
            )  # one that is stuck is so for longer each time
            if kept is not None and kept != logged.get(name):
                _LOG.error("%s: %s", name, one.why)
            logged[name] = kept
        return JSONResponse(body, 200 if well else 503)

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
        return told(found, all(one.ready for one in found.values()))

    @routes.get("/health/live")
    async def live() -> JSONResponse:
        """200 where every model works, even if it takes no requests, else 503: whether to start the server again."""
        found = {name: await model.source.health() for name, model in service.models.items()}
        return told(found, all(one.alive for one in found.values()))

    return routes


def _described(model: ServedModel) -> dict[str, Any]:
    manifest = model.bundle.manifest
    grid = manifest.grid
    return {
        "id": model.name,
        "object": "model",
        "created": model.created,
        "owned_by": "coupled-sampling",
        "makes_pictures": model.makes_pictures,
        "prompts": list(manifest.prompts),
        "grid": None if grid is None else [grid.rows, grid.columns],
        "token_frames": 0 if grid is None else grid.frames,
        "frames": model.frames,
        "fps": int(FPS) if model.frames else None,
        "length": manifest.length,
        "chat": model.template is not None,
    }
