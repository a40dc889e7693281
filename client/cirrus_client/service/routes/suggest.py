"""`POST /v1/suggest`."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Request
from starlette.exceptions import HTTPException
from starlette.responses import Response

from cirrus_client.errors import InvalidImage, InvalidRequest
from cirrus_client.service.body import read_json
from cirrus_client.service.collection import Version
from cirrus_client.service.fetch import ImageReader
from cirrus_client.service.models import Answer, Asked, Image, ItemId
from cirrus_client.service.openapi import PROBLEMS, body
from cirrus_client.service.routes.parts import json_answer, service
from cirrus_client.service.search import check_pixels

router = APIRouter(tags=["suggest"], responses=PROBLEMS)


class Picture(Asked):
    """An image, or a gallery item."""

    image: Image | None = None
    id: ItemId | None = None


class SuggestRequest(Asked):
    """The image to start from, and the one to arrive at. collection: of the items."""

    reference: Picture
    target: Picture
    collection: str | None = None


class Suggestion(Answer):
    """The edit text."""

    text: str


@router.post("/v1/suggest", response_model=Suggestion, openapi_extra=body(SuggestRequest))
async def suggest(request: Request) -> Response:
    """Suggest the edit text that leads from one image to another, where a suggester is served."""
    wanted = await read_json(request, SuggestRequest)
    suggester = service(request).suggester
    if suggester is None:
        raise HTTPException(404, "no suggester is served: start the service with --suggester")
    _, version = service(request).registry.find(wanted.collection)
    reference = await _image(version, wanted.reference, "reference", service(request).images)
    target = await _image(version, wanted.target, "target", service(request).images)
    return json_answer(Suggestion(text=await suggester.suggest(reference, target)))


async def _image(version: Version, picture: Picture, side: str, images: ImageReader) -> bytes:
    if (picture.image is None) == (picture.id is None):
        raise InvalidRequest(f"{side}: give one of 'image' and 'id'", field=side)
    try:
        if picture.id is not None:
            image = await asyncio.to_thread(version.images.read, picture.id)
        else:
            image = await images.read(picture.image or "")
        check_pixels(image, version.max_pixels, 0)
    except InvalidImage as error:
        raise InvalidImage(f"{side} image: {error.reason}", item=side) from None
    return image
