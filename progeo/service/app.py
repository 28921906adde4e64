"""The service as a web application: its routes, and what they answer."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict
from pathlib import Path as FilePath
from typing import Annotated, Any, TypeVar

from fastapi import FastAPI, Path, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from progeo import __version__
from progeo.localization.localizations import Localization
from progeo.localization.place_index import PlaceIndex
from progeo.pages.page import Page
from progeo.service.answers import Answer, Health, Refusal, answer, geojson_answer, named
from progeo.service.documentation import documentation_page
from progeo.service.guard import Guard
from progeo.service.localizer import Localizer
from progeo.service.options import ServiceOptions
from progeo.service.pages import ServicePages
from progeo.service.queries import SETTINGS, parse_query
from progeo.service.uploads import PHOTOS, read_upload

_REFUSALS: dict[int | str, dict[str, Any]] = {
    400: {"model": Refusal, "description": "The form has a wrong field, a wrong value, or no photo."},
    401: {"model": Refusal, "description": "The token is missing or wrong."},
    403: {"model": Refusal, "description": "A page of another host asks a service without a token."},
    408: {"model": Refusal, "description": "The request was received too slowly."},
    413: {"model": Refusal, "description": "The request is too large, or has too many photos."},
    415: {"model": Refusal, "description": "The request is not a form."},
    422: {"model": Refusal, "description": "The only photo cannot be decoded, or no image is near enough."},
    429: {"model": Refusal, "description": "Too many requests wait; Retry-After tells when to try again."},
    503: {"model": Refusal, "description": "The answer took too long, or no photo can be decoded at the moment."},
}
_FORM = {
    "required": True,
    "content": {
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "required": [PHOTOS],
                "properties": {
                    PHOTOS: {
                        "type": "array",
                        "items": {"type": "string", "format": "binary"},
                        "description": "One or several photos.",
                    },
                    **{name: {"type": "string", "description": each.help} for name, each in SETTINGS.items()},
                },
            }
        }
    },
}
_LARGEST_SIDE_PX = 1024
_IMAGE_HEADERS = {"Cache-Control": "private, max-age=60"}
"""Headers of an image of a generation; an index that is built anew has the generation 0 again."""
_Value = TypeVar("_Value")


def build_app(folder: FilePath, options: ServiceOptions = ServiceOptions()) -> FastAPI:
    """Build the application that serves a place index.

    Raises:
        FileNotFoundError, ValueError: the index cannot be opened, or an option is wrong.
    """
    localizer = Localizer(folder, options)
    app = FastAPI(
        title="progeo",
        summary="Find where photos were taken.",
        version=__version__,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        lifespan=lambda _: _running(localizer),
    )
    app.add_middleware(Guard, token=options.token, metrics=localizer.metrics)
    app.exception_handler(HTTPException)(_refused)
    app.exception_handler(RequestValidationError)(_invalid)
    for add_routes in _ROUTES:
        add_routes(app, localizer)
    return app


def page_response(page: Page) -> HTMLResponse:
    """Answer a page under its Content-Security-Policy."""
    return HTMLResponse(page.content, headers={"Content-Security-Policy": f"{page.policy}; frame-ancestors 'none'"})


@asynccontextmanager
async def _running(localizer: Localizer) -> AsyncIterator[None]:
    following = asyncio.create_task(localizer.follow_index())
    yield
    following.cancel()
    with suppress(asyncio.CancelledError):
        await following
    await asyncio.to_thread(localizer.close)


async def _unless_gone(request: Request, work: Coroutine[Any, Any, _Value]) -> _Value:
    """Do the work of a request that was received, or cancel it once its sender leaves.

    Raises:
        ClientDisconnect: its sender left.
    """

    async def left() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    working, leaving = asyncio.create_task(work), asyncio.create_task(left())
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return working.result()
    finally:
        working.cancel()
        leaving.cancel()


def _add_localize(app: FastAPI, localizer: Localizer) -> None:
    options, uploads = localizer.options, asyncio.Semaphore(localizer.options.max_uploads)

    @app.post("/localize", response_model=Answer, responses=_REFUSALS, openapi_extra={"requestBody": _FORM})
    async def localize(request: Request) -> Response:
        """Find where photos were taken: the nearest images or classes of the index, and how likely they are right."""
        if uploads.locked():
            raise HTTPException(429, "Too many requests are being received: try again later.", {"Retry-After": "1"})
        async with uploads:
            upload = await read_upload(request, options, tuple(SETTINGS))
        query, kind = parse_query(upload.settings, options)
        start = time.perf_counter()
        index, found = await _unless_gone(request, localizer.localize(upload.photos, query))
        seconds = time.perf_counter() - start
        return await asyncio.to_thread(_response, index, found, [photo.name for photo in upload.photos], kind, seconds)

    def _response(
        index: PlaceIndex, found: Sequence[Localization], names: Sequence[str], kind: str, seconds: float
    ) -> Response:
        results = [
            named(result, name, show_paths=options.show_paths) for result, name in zip(found, names, strict=True)
        ]
        if kind == "geojson":
            content = geojson_answer(index, results, seconds=seconds)
            return JSONResponse(content, media_type="application/geo+json")
        has_images = not options.no_images and not index.metadata.holds_classes
        return JSONResponse(asdict(answer(index, results, seconds=seconds, has_images=has_images)))


def _add_images(app: FastAPI, localizer: Localizer) -> None:
    @app.get(
        "/images/{row}",
        response_class=Response,
        responses={
            200: {"content": {"image/webp": {}}},
            **{status: _REFUSALS[status] for status in (401, 429, 503)},
            404: {"model": Refusal, "description": "There is no such image."},
            422: {"model": Refusal, "description": "A number is out of its range."},
        },
    )
    async def image(
        request: Request,
        row: Annotated[int, Path(ge=0, le=2**40)],
        side: Annotated[int, Query(ge=16, le=_LARGEST_SIDE_PX)] = 320,
        generation: Annotated[int | None, Query(ge=0, le=2**40)] = None,
    ) -> Response:
        """Show an image of the index, its longer side scaled down to `side` pixels."""
        content = await _unless_gone(request, localizer.image(row, side, generation))
        headers = {} if generation is None else _IMAGE_HEADERS
        return Response(content, media_type="image/webp", headers=headers)


def _add_state(app: FastAPI, localizer: Localizer) -> None:
    @app.head("/health", include_in_schema=False)
    @app.get("/health", response_model=Health)
    async def health() -> Response:
        """Tell which generation of the index is served, and how many images or classes it has."""
        metadata = localizer.index.current.metadata
        return JSONResponse(asdict(Health("ok", metadata.generation, metadata.images, metadata.of)))

    @app.get("/metrics", response_class=Response, responses={200: {"content": {CONTENT_TYPE_LATEST: {}}}})
    async def metrics() -> Response:
        """Tell numbers of the service in the text format of Prometheus."""
        return Response(localizer.metrics.text(), media_type=CONTENT_TYPE_LATEST)


def _add_documentation(app: FastAPI, localizer: Localizer) -> None:
    @app.get("/docs", include_in_schema=False)
    async def documentation() -> Response:
        return page_response(documentation_page(app.openapi(), has_token=localizer.options.token is not None))


def _add_pages(app: FastAPI, localizer: Localizer) -> None:
    options = localizer.options
    pages = ServicePages(
        max_upload_mb=options.max_upload_mb, tile_url=options.tile_url, tile_attribution=options.tile_attribution
    )

    @app.get("/", include_in_schema=False)
    async def localize_page() -> Response:
        return page_response(pages.localize)

    @app.get("/index", include_in_schema=False)
    async def index_page() -> Response:
        return page_response(pages.index)

    @app.get("/points", include_in_schema=False)
    def points() -> Response:
        return JSONResponse(pages.points(localizer.index.current))

    @app.get("/card", include_in_schema=False)
    def card() -> Response:
        return JSONResponse(pages.card(localizer.index.current))


_ROUTES: tuple[Callable[[FastAPI, Localizer], None], ...] = (
    _add_localize,
    _add_images,
    _add_state,
    _add_documentation,
    _add_pages,
)


_SENTENCES = {
    "Not Found": "There is nothing at this address.",
    "Method Not Allowed": "This address does not take this method.",
}
"""What is said instead of the words of Starlette."""


async def _refused(request: Request, error: Exception) -> Response:
    """Answer an error as one sentence."""
    assert isinstance(error, HTTPException)
    return JSONResponse({"detail": _SENTENCES.get(error.detail, error.detail)}, error.status_code, error.headers)


async def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    return JSONResponse({"detail": f"`{first['loc'][-1]}` is wrong: {first['msg']}."}, 422)
