"""The application: its routes, and what a failure looks like."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from typing import Annotated, Any

from fastapi import FastAPI, Query
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from petface.data.images import ImageError
from petface.errors import UserError
from petface.inference.stages import Photo
from petface.models.network import NonFiniteError
from petface.serving import schema
from petface.serving.gate import CLIENT_GONE, Gate
from petface.serving.intake import Intake
from petface.serving.jobs import Animal, Explain, Job, One
from petface.serving.limits import ClientGoneError, RefusedError
from petface.serving.observe import METRICS_TYPE, LineLog
from petface.serving.schema import failures, photo_form
from petface.serving.static_files import StaticFile, read_page

Topk = Annotated[int, Query(ge=1, le=10, description="classes per answer")]
Name = Annotated[str | None, Query(max_length=200)]
_POST = (403, 408, 413, 415, 422, 503)  # how each request with photos may fail


def make_app(intake: Intake, *, hosts: Collection[str] = (), log: LineLog | None = None) -> Gate:
    """Put the application together; the threads of `intake` end with its lifespan.

    `hosts` are the names that it may be asked for under, all where empty.
    """
    engine, limits, metrics = intake.engine, intake.limits, intake.metrics
    started_s = time.monotonic()
    card = {
        **engine.describe(),
        "limits": {
            "max_photos": limits.max_photos,
            "max_body_mb": limits.max_body_mb,
            "max_pixels": limits.max_pixels,
        },
    }
    described = JSONResponse(card).body

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        intake.close()

    app = FastAPI(
        title="PetFace",
        version="1",
        description="Names the species of an animal on a photo, then breed, colours and gender.",
        docs_url=None,  # these pages load scripts from elsewhere
        redoc_url=None,
        lifespan=lifespan,
    )

    @app.post(
        "/predict",
        response_model=schema.Answer,
        responses=failures(*_POST),
        openapi_extra=photo_form("photo", 1),
    )
    async def predict(request: Request, topk: Topk = 3) -> Response:
        """Answer one photo."""
        answer = await intake.ask(request, "photo", 1, lambda found: One(_only(found), topk))
        metrics.count_answer(answer)
        return JSONResponse(answer)

    @app.post(
        "/predict_animal",
        response_model=schema.AnimalAnswer,
        responses=failures(*_POST),
        openapi_extra=photo_form("photos", limits.max_photos),
    )
    async def predict_animal(request: Request, topk: Topk = 3) -> Response:
        """Answer photos of one animal, each and together; what is no photo is left out."""

        def job_of(found: Sequence[Photo | ImageError]) -> Job:
            if all(isinstance(photo, ImageError) for photo in found):
                _only(found)
            return Animal(found, topk)

        answer = await intake.ask(request, "photos", limits.max_photos, job_of)
        for photo in answer["photos"]:
            metrics.count_answer(photo)
        return JSONResponse(answer)

    @app.post(
        "/explain",
        response_class=Response,
        responses={
            200: {
                "description": "the photo, its places that speak for the answer coloured",
                "content": {"image/png": {"schema": {"type": "string", "format": "binary"}}},
            },
            **failures(404, 409, *_POST),
        },
        openapi_extra=photo_form("photo", 1),
    )
    async def explain(
        request: Request,
        species: Name = None,
        head: Annotated[str, Query(max_length=200)] = "species",
        label: Name = None,
    ) -> Response:
        """Show which places of a photo speak for an answer (Grad-CAM)."""
        if not engine.can_explain:
            raise RefusedError(409, "not_explained", "exported models cannot be explained")
        try:
            picture = await intake.ask(
                request, "photo", 1, lambda found: Explain(_only(found), species, head, label)
            )
        except NonFiniteError as error:
            raise RefusedError(409, "non_finite", str(error)) from None
        except UserError as error:
            raise RefusedError(404, "unknown", str(error)) from None
        return Response(picture, media_type="image/png")

    @app.get(
        "/health",
        response_model=schema.Health,
        responses={**failures(), 503: {"model": schema.Health, "description": "must be restarted"}},
    )
    async def health() -> Response:
        """Tell whether the server works; answered under load too."""
        is_alive = intake.batcher.is_alive
        state = {
            "status": "ok" if is_alive else "failed",
            "photos_waiting": intake.batcher.num_taken,
            "uptime_s": round(time.monotonic() - started_s, 1),
        }
        return JSONResponse(state, 200 if is_alive else 503)

    @app.get("/model_card", response_model=schema.ModelCard, responses=failures())
    async def model_card() -> Response:
        """Say which models answer, and within which limits."""
        return Response(described, media_type="application/json")

    @app.get(
        "/metrics",
        response_class=Response,
        responses={
            200: {
                "description": "figures in the text format of Prometheus",
                "content": {METRICS_TYPE: {"schema": {"type": "string"}}},
            },
            **failures(),
        },
    )
    async def figures() -> Response:
        """Give the server's figures."""
        return Response(metrics.text(), headers={"content-type": METRICS_TYPE})

    page = read_page()
    for path, file in page.items():
        _add_file(app, path, file)
    _add_failures(app)
    routes = {"/predict", "/predict_animal", "/explain", "/health", "/model_card", "/metrics"}
    routes |= {"/openapi.json", *page}
    return Gate(app, hosts=hosts, routes=routes, metrics=metrics, log=log)


def _only(found: Sequence[Photo | ImageError]) -> Photo:
    """Give the first photo, or refuse: 413 for too many pixels, 400 for what is none."""
    if isinstance(found[0], ImageError):
        code = 413 if found[0].reason == "too_large" else 400
        raise RefusedError(code, found[0].reason, str(found[0]))
    return found[0]


def _add_file(app: FastAPI, path: str, file: StaticFile) -> None:
    async def send(request: Request) -> Response:
        return file.answer(request)

    app.add_api_route(path, send, methods=["GET"], include_in_schema=False)


def _add_failures(app: FastAPI) -> None:
    """Give every failure the same form: status and message."""

    def failure(
        code: int, status: str, message: str, headers: dict[str, str] | None = None
    ) -> Response:
        return JSONResponse({"status": status, "message": message}, code, headers)

    @app.exception_handler(RefusedError)
    async def refused(_: Request, error: RefusedError) -> Response:
        return failure(error.code, error.status, error.message, error.headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> Response:
        found = [f"{problem['loc'][-1]}: {problem['msg']}" for problem in error.errors()]
        return failure(422, "invalid", "; ".join(found))

    @app.exception_handler(HTTPException)
    async def unknown(_: Request, error: HTTPException) -> Response:
        status = "not_found" if error.status_code == 404 else "refused"
        headers: Any = error.headers
        return failure(error.status_code, status, str(error.detail), headers)

    @app.exception_handler(ClientGoneError)
    async def gone(_: Request, __: ClientGoneError) -> Response:
        return Response(status_code=CLIENT_GONE)

    @app.exception_handler(Exception)
    async def failed(_: Request, __: Exception) -> Response:
        return failure(500, "failed", "the server failed; its log says why under x-request-id")
