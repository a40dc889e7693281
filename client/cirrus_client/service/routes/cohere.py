"""`POST /v2/embed`, as Cohere words it."""

from __future__ import annotations

import secrets
from typing import Any, Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from cirrus_client.errors import InvalidRequest, UnsupportedQuery
from cirrus_client.service.body import read_json
from cirrus_client.service.embedding import Content, as_base64, embed, side_of, tokens_of
from cirrus_client.service.fetch import ImageReader
from cirrus_client.service.models import Answer
from cirrus_client.service.openapi import PROBLEMS, body
from cirrus_client.service.routes.openai import Part, content_of
from cirrus_client.service.routes.parts import json_answer, service

router = APIRouter(tags=["embeddings"], responses=PROBLEMS)


class EmbedInput(BaseModel):
    """An image with an edit, an image, or a text: one embedding."""

    model_config = ConfigDict(extra="ignore")

    content: list[Part]


class EmbedRequest(BaseModel):
    """Texts, images as data URIs, or `inputs` of both. model: the name of a collection."""

    model_config = ConfigDict(extra="ignore")

    model: str | None = None
    input_type: str | None = None
    texts: list[str] | None = None
    images: list[str] | None = None
    inputs: list[EmbedInput] | None = None
    embedding_types: list[Literal["float", "base64"]] = ["float"]
    output_dimension: int | None = None


class EmbedAnswer(Answer):
    """Embeddings by type, in the order of the inputs."""

    id: str
    response_type: Literal["embeddings_by_type"] = "embeddings_by_type"
    embeddings: dict[str, Any]
    texts: list[str] = Field(default=[])
    meta: dict[str, Any]


@router.post("/v2/embed", response_model=EmbedAnswer, openapi_extra=body(EmbedRequest))
async def embed_v2(request: Request) -> Response:
    """Return embeddings of texts, images, and images with edits, as Cohere's API does."""
    wanted = await read_json(request, EmbedRequest)
    name, version = service(request).registry.find(wanted.model)
    space = version.spec.space
    if wanted.output_dimension not in (None, space.dim):
        raise InvalidRequest(f"the space of {name} has {space.dim} dimensions, and no fewer", field="output_dimension")
    contents = await _contents(wanted, service(request).images)
    found = await embed(version, contents, side_of(wanted.input_type))
    if any(one.ndim == 2 for one in found):
        raise UnsupportedQuery("a gallery image of this collection has several vectors, which this API can't say")
    tokens = tokens_of(version, contents)
    by_type: dict[str, Any] = {
        kind: [as_base64(one) if kind == "base64" else one.tolist() for one in found] for kind in wanted.embedding_types
    }
    return json_answer(
        EmbedAnswer(
            id=secrets.token_hex(16),
            embeddings=by_type,
            texts=wanted.texts or [],
            meta={"api_version": {"version": "2"}, "billed_units": {"input_tokens": tokens}},
        )
    )


async def _contents(wanted: EmbedRequest, images: ImageReader) -> list[Content]:
    given = [one for one in (wanted.texts, wanted.images, wanted.inputs) if one is not None]
    if len(given) != 1:
        raise InvalidRequest("give one of 'texts', 'images' and 'inputs'", field="inputs")
    if wanted.texts is not None:
        return [Content(text=text) for text in wanted.texts]
    parts = (
        [[Part(type="image_url", image_url=image)] for image in wanted.images]
        if wanted.images is not None
        else [one.content for one in wanted.inputs or []]
    )
    return [await content_of(one, place, images) for place, one in enumerate(parts)]
