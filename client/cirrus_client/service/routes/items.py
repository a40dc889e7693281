"""`GET /v1/items/{id}` and its image."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from starlette.convertors import PathConvertor, register_url_convertor
from starlette.responses import Response

from cirrus_client.service.limits import MAX_THUMBNAIL_PX
from cirrus_client.service.models import ItemAnswer
from cirrus_client.service.openapi import PROBLEMS
from cirrus_client.service.routes.parts import json_answer, service
from cirrus_client.service.search import image_link


class _AnyPath(PathConvertor):
    """A path of any characters: that of `path` has no line breaks."""

    regex = "(?s:.*)"


register_url_convertor("any_path", _AnyPath())
router = APIRouter(tags=["items"], responses=PROBLEMS)
_BYTES = {"schema": {"type": "string", "format": "binary"}}
_IMAGE: dict[int | str, dict[str, Any]] = {
    # Never sent as the second: clients whose generator knows no type of images take it as bytes all the same.
    200: {"description": "The image.", "content": {"image/*": _BYTES, "application/octet-stream": _BYTES}},
    304: {"description": "The image that the caller has."},
}
_CACHED = "private, max-age=3600"
Collection = Annotated[str | None, Query(description="the name of a collection; the first one if absent")]
Size = Annotated[
    int | None,
    Query(ge=16, le=MAX_THUMBNAIL_PX, description="the longer side of a thumbnail; the file itself if absent"),
]


@router.get("/v1/items/{id:any_path}/image", response_class=Response, responses=_IMAGE)
async def item_image(request: Request, id: str, collection: Collection = None, size: Size = None) -> Response:
    """Return an item's image, or a thumbnail of it. It is read from below the gallery's folder only.

    An id that ends in `/image` is told from this path by its escaped slash: `/v1/items/shoes%2Fimage` is an item.
    """
    if not request.scope["raw_path"].endswith(b"/image"):
        return await item(request, f"{id}/image", collection)
    _, version = service(request).registry.find(collection)
    threads = service(request).pictures
    file = await asyncio.get_running_loop().run_in_executor(threads, version.images.file, id, size)
    headers = {"ETag": file.etag, "Cache-Control": _CACHED}
    if file.etag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    return Response(file.content, media_type=file.media_type, headers=headers)


@router.get("/v1/items/{id:any_path}", response_model=ItemAnswer)
async def item(request: Request, id: str, collection: Collection = None) -> Response:
    """Return an item's metadata."""
    name, version = service(request).registry.find(collection)
    found = await asyncio.to_thread(version.images.item, id)
    return json_answer(
        ItemAnswer(
            id=found.id, collection=name, metadata=found.metadata, image=image_link(name, version.space, found.id)
        )
    )
