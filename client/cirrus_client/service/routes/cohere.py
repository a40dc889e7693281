"""`POST /v2/embed` and `POST /v1/embed`, as Cohere's clients word them: `ClientV2`, and `Client` and LangChain."""

from __future__ import annotations

import secrets
from typing import Any, Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from cirrus_client.encoders.protocol import Embeddings
from cirrus_client.errors import InvalidRequest, UnsupportedQuery
from cirrus_client.service.body import read_json
from cirrus_client.service.embedding import Content, Inputs, as_base64, embed, side_of, tokens_of
from cirrus_client.service.fetch import ImageReader
from cirrus_client.service.models import Answer
from cirrus_client.service.openapi import PROBLEMS, body
from cirrus_client.service.routes.openai import Part, content_of
from cirrus_client.service.routes.parts import json_answer, service

Kind = Literal["float", "base64"]
router = APIRouter(tags=["embeddings"], responses=PROBLEMS)


class EmbedInput(BaseModel):
    """An image with an edit, an image, or a text: one embedding."""

    model_config = ConfigDict(extra="ignore")

    content: Inputs[Part]


class _Wanted(BaseModel):
    model_config = ConfigDict(extra="ignore")

    model: str | None = None
    input_type: str | None = None
    texts: Inputs[str] | None = None
    images: Inputs[str] | None = None
    inputs: Inputs[EmbedInput] | None = None
    output_dimension: int | None = None


class EmbedRequest(_Wanted):
    """Texts, images as data URIs, or `inputs` of both. model: the name of a collection."""

    embedding_types: list[Kind] = ["float"]


class EmbedRequestV1(_Wanted):
    """As in the second version, but without embedding_types the answer has lists of numbers and no types."""

    embedding_types: list[Kind] | None = None


class EmbedAnswer(Answer):
    """Embeddings by type, in the order of the inputs."""

    id: str
    response_type: Literal["embeddings_by_type"] = "embeddings_by_type"
    embeddings: dict[str, Any]
    texts: list[str] = Field(default=[])
    meta: dict[str, Any]


class EmbedFloatsAnswer(Answer):
    """Embeddings in the order of the inputs."""

    id: str
    response_type: Literal["embeddings_floats"] = "embeddings_floats"
    embeddings: list[list[float]]
    texts: list[str] = Field(default=[])
    meta: dict[str, Any]


@router.post("/v2/embed", response_model=EmbedAnswer, openapi_extra=body(EmbedRequest))
async def embed_v2(request: Request) -> Response:
    """Return embeddings of texts, images, and images with edits, as Cohere's API does."""
    wanted = await read_json(request, EmbedRequest)
    found, said = await _embedded(request, wanted, version="2")
    return json_answer(EmbedAnswer(embeddings=_by_type(found, wanted.embedding_types), **said))


@router.post("/v1/embed", response_model=EmbedAnswer | EmbedFloatsAnswer, openapi_extra=body(EmbedRequestV1))
async def embed_v1(request: Request) -> Response:
    """Return embeddings of texts, or of images, as the first version of Cohere's API does."""
    wanted = await read_json(request, EmbedRequestV1)
    found, said = await _embedded(request, wanted, version="1")
    if wanted.embedding_types is None:
        return json_answer(EmbedFloatsAnswer(embeddings=[one.tolist() for one in found], **said))
    return json_answer(EmbedAnswer(embeddings=_by_type(found, wanted.embedding_types), **said))


async def _embedded(request: Request, wanted: _Wanted, *, version: str) -> tuple[list[Embeddings], dict[str, Any]]:
    """Return the embeddings, float32 [D] each, and what an answer says besides."""
    name, served = service(request).registry.find(wanted.model)
    space = served.spec.space
    if wanted.output_dimension not in (None, space.dim):
        raise InvalidRequest(f"the space of {name} has {space.dim} dimensions, and no fewer", field="output_dimension")
    contents = await _contents(wanted, service(request).images)
    found = await embed(served, contents, side_of(wanted.input_type, "input_type"))
    if any(one.ndim == 2 for one in found):
        raise UnsupportedQuery("a gallery image of this collection has several vectors, which this API can't say")
    tokens = await tokens_of(served, contents)
    said = {"api_version": {"version": version}, "billed_units": {"input_tokens": tokens}}
    return found, {"id": secrets.token_hex(16), "texts": wanted.texts or [], "meta": said}


def _by_type(found: list[Embeddings], kinds: list[Kind]) -> dict[str, Any]:
    return {kind: [as_base64(one) if kind == "base64" else one.tolist() for one in found] for kind in kinds}


async def _contents(wanted: _Wanted, images: ImageReader) -> list[Content]:
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
    return [await content_of(one, place, images, field=f"inputs.{place}.content") for place, one in enumerate(parts)]
