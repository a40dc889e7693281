"""`POST /knn-service`, `POST /metadata` and `GET /indices-list`, as clip-retrieval words them."""

from __future__ import annotations

import asyncio
import base64
from typing import Any, Literal

import numpy as np
from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field, StrictInt
from starlette.responses import JSONResponse, Response

from cirrus_client.encoders.protocol import Embeddings
from cirrus_client.errors import InvalidRequest, UnknownItem
from cirrus_client.index.items import Item
from cirrus_client.service.body import read_json
from cirrus_client.service.collection import Version
from cirrus_client.service.embedding import Content, Side, embed
from cirrus_client.service.fetch import ImageReader
from cirrus_client.service.limits import MAX_K, MAX_OFFSET, MAX_TEXT_CHARS, MAX_VALUES
from cirrus_client.service.models import Answer, Metadata
from cirrus_client.service.openapi import PROBLEMS, body
from cirrus_client.service.ranking import Rules
from cirrus_client.service.routes.parts import service

router = APIRouter(tags=["clip-retrieval"], responses=PROBLEMS)
_DUPLICATE = 0.94
_THUMBNAIL_PX = 256


class _Tolerant(BaseModel):
    model_config = ConfigDict(extra="ignore")


class KnnRequest(_Tolerant):
    """A text, an image, or both, or an embedding of the space. indice_name: the name of a collection.

    num_images: results with metadata and image. num_result_ids: results in all; as many if absent.
    """

    text: str | None = Field(default=None, max_length=MAX_TEXT_CHARS)
    image: str | None = None
    image_url: str | None = None
    embedding_input: list[float] | None = Field(default=None, max_length=MAX_VALUES)
    modality: Literal["image", "text"] = "image"
    num_images: int = Field(default=100, ge=0, le=MAX_K)
    num_result_ids: int | None = Field(default=None, ge=1, le=MAX_OFFSET)
    indice_name: str | None = None
    deduplicate: bool = False


class MetadataRequest(_Tolerant):
    """Rows of a collection."""

    ids: list[StrictInt] = Field(max_length=MAX_K)
    indice_name: str | None = None


class MetadataOf(Answer):
    """The metadata of a row."""

    id: int
    metadata: Metadata


@router.post("/knn-service", response_model=list[dict[str, Any]], openapi_extra=body(KnnRequest))
async def knn_service(request: Request) -> Response:
    """Search as clip-retrieval does; a text with an image is a composed query."""
    wanted = await read_json(request, KnnRequest)
    _, version = service(request).registry.find(wanted.indice_name)
    embedding = await _embedding(version, wanted, service(request).images)
    count = wanted.num_result_ids or max(1, wanted.num_images)
    rules = Rules(count=count, fold=_DUPLICATE if wanted.deduplicate else None)
    ranking = await version.searcher.rank(embedding, rules, None)
    shown = ranking[: wanted.num_images]
    items = await asyncio.to_thread(version.saved.items.rows, [one.row for one in shown])
    loop, threads = asyncio.get_running_loop(), service(request).pictures
    described = await asyncio.gather(*(loop.run_in_executor(threads, _described, version, item) for item in items))
    metadata = [*described, *({} for _ in ranking[len(described) :])]
    return _json(
        [{**fields, "id": one.row, "similarity": one.score} for one, fields in zip(ranking, metadata, strict=True)]
    )


@router.post("/metadata", response_model=list[MetadataOf], openapi_extra=body(MetadataRequest))
async def metadata(request: Request) -> Response:
    """Return the metadata of rows."""
    wanted = await read_json(request, MetadataRequest)
    _, version = service(request).registry.find(wanted.indice_name)
    items = await asyncio.to_thread(version.saved.items.rows, wanted.ids)
    answers = []
    for row, item in zip(wanted.ids, items, strict=True):
        if item is None:
            raise UnknownItem(f"there is no row {row}", id=str(row))
        answers.append({"id": row, "metadata": _fields(item)})
    return _json(answers)


@router.get("/indices-list", response_model=list[str])
async def indices_list(request: Request) -> Response:
    """Return the names of the collections."""
    return JSONResponse(list(service(request).registry.names()))


async def _embedding(version: Version, wanted: KnnRequest, images: ImageReader) -> Embeddings:
    """Return the query's embedding, float32 [D]."""
    if wanted.embedding_input is not None:
        given = np.array(wanted.embedding_input, dtype=np.float32)
        length = float(np.linalg.norm(given))
        if given.shape != (version.spec.space.dim,) or not 0 < length < np.inf:
            raise InvalidRequest(
                f"'embedding_input' has {given.size} values, expected {version.spec.space.dim} that are not all 0",
                field="embedding_input",
            )
        unit: Embeddings = given / length
        return unit
    given_image = wanted.image or wanted.image_url
    image = None if not given_image else await images.read(given_image)
    return (await embed(version, [Content(image, wanted.text or None)], Side.QUERY))[0]


def _fields(item: Item) -> dict[str, Any]:
    return {**item.metadata, "image_path": item.id}


def _described(version: Version, item: Item | None) -> dict[str, Any]:
    """Return an item's metadata with a thumbnail in base64, as clip-retrieval's front end shows it.

    An item that was removed since it was found has none.
    """
    if item is None:
        return {}
    try:
        thumbnail = version.images.file(item.id, _THUMBNAIL_PX).content
    except UnknownItem:
        return _fields(item)
    return {**_fields(item), "image": base64.b64encode(thumbnail).decode()}


class _Json(Answer):
    content: list[Metadata]


def _json(content: list[dict[str, Any]]) -> Response:
    text = _Json(content=content).model_dump_json()
    return Response(text.removeprefix('{"content":').removesuffix("}"), media_type="application/json")
