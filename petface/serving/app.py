"""The application: its routes, what they compute, what a failure looks like, what is counted.

Metrics and log hold nothing of a photo: no file name, no content, no address of a client.
"""

from __future__ import annotations

import asyncio
import ctypes
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Final

import prometheus_client as prometheus
import torch
from fastapi import Depends, FastAPI, Query
from fastapi.exceptions import RequestValidationError
from PIL import Image
from starlette.exceptions import HTTPException
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from petface.data import encoded, images
from petface.data.images import SMALL_PIXELS, ImageError, Preprocessing
from petface.errors import MachineError, UserError
from petface.identity.embed import Embedder
from petface.inference.stages import Photo
from petface.inference.two_stage import TwoStageInference
from petface.models.network import NOT_FINITE, Answerer, NonFiniteError, begin_copy
from petface.serving.batcher import Batcher
from petface.serving.requests import (
    Budget,
    Limits,
    RefusedError,
    busy,
    check_protocol,
    read_photos,
    while_there,
)

CLIENT_GONE: Final = 499  # as nginx logs it; nobody receives it
_LOG: Final = logging.getLogger(__name__)
PAGE: Final = Path(__file__).parent / "page"
Rules = Sequence[Preprocessing]
Work = Callable[[list[Photo | ImageError]], Awaitable[Any]]
Topk = Annotated[int, Query(ge=1, le=10, description="classes per answer")]
Name = Annotated[str, Query(max_length=200)]


class Metrics:
    """The server's metrics, in a registry of their own."""

    def __init__(self) -> None:
        own = self.registry = prometheus.CollectorRegistry()
        prometheus.ProcessCollector(registry=own)
        self.requests = prometheus.Counter(
            "petface_requests", "Requests answered", ["route", "status"], registry=own
        )
        self.seconds = prometheus.Histogram(
            "petface_request_seconds", "From head to answer", ["route"], registry=own
        )
        self.photos = prometheus.Counter(
            "petface_photos", "Photos by the status of their answer", ["status"], registry=own
        )
        self.batch_photos = prometheus.Histogram(
            "petface_batch_photos", "Photos per batch", registry=own, buckets=(1, 2, 4, 8, 16, 32)
        )
        self.uploads = prometheus.Gauge("petface_upload_bytes", "Bodies in memory", registry=own)


class Service:
    """The networks behind the routes: every request with photos goes through `answer`.

    Photos are decoded in `num_decoders` threads, large ones in as many others, so that small ones
    need not wait for them. What is decoded is computed in batches, in `num_workers` threads.
    """

    def __init__(
        self,
        engine: TwoStageInference,
        limits: Limits,
        embedder: Embedder | None = None,
        *,
        num_workers: int = 1,
        num_decoders: int = 1,
    ) -> None:
        self.engine, self.limits, self.metrics = engine, limits, Metrics()
        self.embedder = embedder
        names = ("threshold", "false_match_rate")  # of two photos of two animals
        self.matching = {name: getattr(embedder, name, None) for name in names}
        self.photos = Budget(limits.max_queue, "photos")
        self.uploads = Budget(limits.max_uploads_mb * 1e6, "uploads")
        self.pixels = Budget(limits.max_pixels_at_once, "pixels")
        self.metrics.uploads.set_function(lambda: self.uploads.used)
        self._decoders = [ThreadPoolExecutor(num_decoders) for _ in ("small", "large")]
        self.batcher = Batcher(self._predict, limits.max_batch, num_workers=num_workers)

    def close(self) -> None:
        """End the threads."""
        self.batcher.close()
        for pool in self._decoders:
            pool.shutdown(wait=False, cancel_futures=True)

    async def answer(
        self, request: Request, field: str, most: int, work: Work, rules: Rules = ()
    ) -> Any:
        """Return what `work` makes of 1 to `most` photos, or refuse the request.

        At least one of them is a photo, prepared by `rules`, else for the engine. A full queue
        refuses with 503 before the body is read, too many pixels before anything is decoded.
        """
        if self.photos.used >= self.photos.most:
            raise busy("too many photos at once")
        with (
            self.uploads.holding() as take_bytes,
            self.photos.holding() as take_photos,
            self.pixels.holding() as take_pixels,
        ):
            contents = await read_photos(request, field, most, self.limits, take_bytes)
            take_photos(len(contents))
            sizes = await asyncio.to_thread(lambda: [*map(images.num_pixels, contents)])
            # what is too large is refused and never decoded
            take_pixels(sum(size for size in sizes if size <= self.limits.max_pixels))
            pairs = zip(contents, sizes, strict=True)
            given = [(content, size > SMALL_PIXELS, rules) for content, size in pairs]
            answer = self._answer(given, work)
            return await while_there(request, answer, self.limits.answer_timeout_s)

    async def _answer(self, given: Sequence[tuple[bytes, bool, Rules]], work: Work) -> Any:
        run = asyncio.get_running_loop().run_in_executor
        decoding = [run(self._decoders[one[1]], self._prepare, *one) for one in given]
        photos = await asyncio.gather(*decoding)
        errors = [photo for photo in photos if isinstance(photo, ImageError)]
        if len(errors) == len(photos):
            raise errors[0]
        return await work(photos)

    def _prepare(self, content: bytes, is_large: bool, rules: Rules) -> Photo | ImageError:
        """Decode a photo; what is none gives its error."""
        try:
            return self.engine.prepare(content, self.limits.max_pixels, rules)
        except ImageError as error:
            return error
        finally:
            if is_large:  # Pillow and the C library would keep much of its memory
                Image.core.clear_cache()
                getattr(ctypes.CDLL(None), "malloc_trim", abs)(0)

    def fuse(self, photos: Sequence[Photo | ImageError], topk: int) -> dict[str, Any]:
        """Answer photos of one animal."""
        self.metrics.batch_photos.observe(sum(isinstance(photo, Photo) for photo in photos))
        return self.engine.answer_animal(photos, topk)

    def embed(self, network: Answerer, photos: Sequence[Photo | ImageError]) -> dict[str, Any]:
        """Embed photos; what could not be decoded keeps its place."""
        good = [photo for photo in photos if isinstance(photo, Photo)]
        self.metrics.batch_photos.observe(len(good))
        pixels = [torch.from_numpy(photo.at(network.preprocessing)) for photo in good]
        rows = begin_copy(network.answer_pixels(torch.stack(pixels)))()[0]
        if not bool(torch.isfinite(rows).all()):
            raise NonFiniteError(NOT_FINITE)
        answers = ({"status": "ok", "embedding": row} for row in rows.tolist())
        answered = [
            {"status": p.reason, "message": str(p)} if isinstance(p, ImageError) else next(answers)
            for p in photos
        ]
        return {"size": rows.shape[1], **self.matching, "photos": answered}

    def _predict(self, items: Sequence[tuple[Photo, int]]) -> list[dict[str, Any]]:
        """Answer single photos, each with its number of classes, as one batch."""
        self.metrics.batch_photos.observe(len(items))
        answers = self.engine.answer([photo for photo, _ in items], max(topk for _, topk in items))
        return [shortened(a, topk) for a, (_, topk) in zip(answers, items, strict=True)]


def shortened(answer: dict[str, Any], topk: int) -> dict[str, Any]:
    """Return an answer with the `topk` best of each list: they are in falling order."""

    def cut(entry: dict[str, Any] | None) -> dict[str, Any] | None:
        return entry and {**entry, "topk": entry["topk"][:topk]}

    attributes = {head: cut(entry) for head, entry in answer["attributes"].items()}
    return {**answer, "species": cut(answer["species"]), "attributes": attributes}


def make_app(service: Service, hosts: Collection[str] = ()) -> Observed:
    """Build the application; the threads of `service` end with it.

    `hosts` are the names under which it may be reached, all where empty. Without the check a page
    of another site could reach a server on this machine through a name of its own that points here
    (DNS rebinding).
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        service.close()

    # the pages /docs and /redoc would load scripts from elsewhere
    app = FastAPI(title="PetFace", docs_url=None, redoc_url=None, lifespan=lifespan)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=[*hosts] or ["*"], www_redirect=False)
    _add_photo_routes(app, service)
    _add_routes(app, service)
    for kind in (HTTPException, RequestValidationError, UserError, ClientDisconnect, Exception):
        app.add_exception_handler(kind, _refuse)
    return Observed(app, service.metrics)


def _add_photo_routes(app: FastAPI, service: Service) -> None:
    most, call = service.limits.max_photos, service.batcher.call
    post = partial(app.post, dependencies=[Depends(_same_origin)])

    def counted(answer: dict[str, Any], photos: list[dict[str, Any]]) -> JSONResponse:
        for photo in photos:
            service.metrics.photos.labels(photo["status"]).inc()
        return JSONResponse(answer)

    @post("/predict", openapi_extra=_form("photo"))
    async def predict(request: Request, topk: Topk = 3) -> JSONResponse:
        """Predict one photo."""
        answer = await service.answer(
            request, "photo", 1, lambda photos: service.batcher.answer((photos[0], topk))
        )
        return counted(answer, [answer])

    @post("/predict_animal", openapi_extra=_form("photos"))
    async def predict_animal(request: Request, topk: Topk = 3) -> JSONResponse:
        """Predict photos of one animal, each and together; files that are no photo are left out."""
        answer = await service.answer(
            request, "photos", most, lambda photos: call(service.fuse, photos, topk)
        )
        return counted(answer, answer["photos"])

    @post("/embed", openapi_extra=_form("photos"))
    async def embed(request: Request) -> JSONResponse:
        """Embed photos for whoever compares animals; files that are no photo are left out."""
        if service.embedder is None:
            raise RefusedError(409, "no_gallery", "this server has no IDENTITY_CHECKPOINT")
        network = service.embedder.network
        work, rules = partial(call, service.embed, network), [network.preprocessing]
        answer = await service.answer(request, "photos", most, work, rules)
        return counted(answer, answer["photos"])

    @post("/explain", response_class=Response, openapi_extra=_form("photo"))
    async def explain(
        request: Request,
        species: Name | None = None,
        head: Name = "species",
        label: Name | None = None,
    ) -> Response:
        """Return which regions of a photo raised an answer (Grad-CAM), as a PNG."""
        if not service.engine.can_explain:
            raise RefusedError(409, "not_explained", "exported models cannot be explained")
        explained = partial(service.engine.explain, species=species, head=head, label=label)
        png = await service.answer(request, "photo", 1, lambda photos: call(explained, photos[0]))
        return Response(png, media_type="image/png")


def _form(field: str) -> dict[str, Any]:
    """Describe the form of a request for FastAPI's `openapi_extra`."""
    photo: dict[str, Any] = {"type": "string", "format": "binary"}  # as generators know it
    if field == "photos":
        photo = {"type": "array", "items": photo}
    form = {"type": "object", "properties": {field: photo}, "required": [field]}
    content = {"multipart/form-data": {"schema": form}}
    return {"requestBody": {"required": True, "content": content}}


def _same_origin(request: Request) -> None:
    """Refuse what a page of another site sends."""
    origin, host = request.headers.get("origin"), request.headers["host"].lower()
    if origin is not None and origin.lower() not in (f"http://{host}", f"https://{host}"):
        raise RefusedError(403, "refused", "pages of other sites may not use this server")


def _add_routes(app: FastAPI, service: Service) -> None:
    started_s = time.monotonic()
    names = ("max_photos", "max_body_mb", "max_pixels")
    limits = {name: getattr(service.limits, name) for name in names}
    card = {**service.engine.describe(), "limits": limits, "formats": encoded.formats()}
    identity = service.embedder
    card["identity"] = identity and {"sha256": identity.sha256, **service.matching}

    @app.get("/health")
    async def health() -> JSONResponse:
        """Return whether the server works; answered under load too."""
        uptime_s = round(time.monotonic() - started_s, 1)
        waiting = service.photos.used
        return JSONResponse({"status": "ok", "photos_waiting": waiting, "uptime_s": uptime_s})

    @app.get("/model_card")
    async def model_card() -> JSONResponse:
        """Describe the models that answer, and the limits of a request."""
        return JSONResponse(card)

    @app.get("/metrics", response_class=Response)
    async def metrics() -> Response:
        """Return the server's metrics in the text format of Prometheus."""
        found = prometheus.generate_latest(service.metrics.registry)
        return Response(found, headers={"content-type": prometheus.CONTENT_TYPE_LATEST})

    @app.get("/", include_in_schema=False)
    async def page() -> FileResponse:
        return FileResponse(PAGE / "index.html")

    app.mount("/page", StaticFiles(directory=PAGE))


class Observed:
    """The outermost layer: lets through what is plain HTTP; every request is counted and logged."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        status, start_s = CLIENT_GONE, time.perf_counter()
        if scope.get("method") == "HEAD":  # uvicorn keeps its own scope and leaves the body out
            scope = {**scope, "method": "GET"}

        async def send_on(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        app = self._app
        try:
            if scope["type"] == "http":
                check_protocol(scope)
        except RefusedError as error:
            app = await _refuse(Request(scope), error)
        try:
            await app(scope, receive, send_on)
        finally:
            if scope["type"] == "http":
                # never the raw path: a stranger would write into logs and metrics
                route = getattr(scope.get("route"), "path", "other")
                seconds = time.perf_counter() - start_s
                num_bytes = scope["state"].get("bytes_in", 0)
                self._metrics.requests.labels(route, str(status)).inc()
                self._metrics.seconds.labels(route).observe(seconds)
                _LOG.info("%s %d %d bytes %.1f ms", route, status, num_bytes, seconds * 1000)


async def _refuse(_: Request, error: Exception) -> JSONResponse:
    """Format every failure alike: status and message."""
    code, status, message = 500, "failed", "the server failed; its log says why"
    match error:
        case HTTPException():  # ours has a status; the framework's has not
            code, message = error.status_code, error.detail
            status = getattr(error, "status", "not_found" if code == 404 else "refused")
        case RequestValidationError():
            found = [f"{problem['loc'][-1]}: {problem['msg']}" for problem in error.errors()]
            code, status, message = 422, "invalid", "; ".join(found)
        case ImageError():
            code = 413 if error.reason == "too_large" else 400
            status, message = error.reason, str(error)
        case NonFiniteError():
            code, status, message = 409, "non_finite", str(error)
        case MachineError():
            code, status = 503, "busy"
            message = "the server cannot read what it needs just now; try again"
        case UserError():
            code, status, message = 404, "unknown", str(error)
        case ClientDisconnect():
            code, status = CLIENT_GONE, "gone"
    headers = getattr(error, "headers", None)
    return JSONResponse({"status": status, "message": message}, code, headers)
