"""`POST /v1/embeddings` and `GET /v1/models`, as OpenAI, vLLM, Jina and infinity word them."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel, BeforeValidator, ConfigDict
from starlette.responses import Response

from cirrus_client.encoders.protocol import Embeddings
from cirrus_client.errors import InvalidImage, InvalidRequest
from cirrus_client.service.body import read_json
from cirrus_client.service.collection import Version
from cirrus_client.service.embedding import Content, Inputs, as_base64, check_count, embed, side_of, tokens_of
from cirrus_client.service.fetch import ImageReader, from_data_uri
from cirrus_client.service.models import Answer
from cirrus_client.service.openapi import OPENAI_PROBLEMS, body
from cirrus_client.service.routes.parts import json_answer, service

router = APIRouter(tags=["embeddings"], responses=OPENAI_PROBLEMS)


class _Tolerant(BaseModel):
    """Fields that other servers know are taken and not used."""

    model_config = ConfigDict(extra="ignore")


class LinkedImage(_Tolerant):
    """A data URI, or a web address of an allowed host."""

    url: str


class Part(_Tolerant):
    """A part of a message: a text or an image."""

    type: Literal["text", "image_url"]
    text: str | None = None
    image_url: LinkedImage | str | None = None


class Message(_Tolerant):
    """An image with an edit: one message of a user is one embedding.

    A system message is the instruction of those behind it, and must be the bundle's own. An assistant's is empty.
    """

    role: Literal["user", "system", "developer", "assistant"] = "user"
    content: Annotated[str | list[Part], BeforeValidator(check_count)]


class JinaInput(_Tolerant):
    """Jina's form of an input. image: base64, a data URI, or a web address of an allowed host."""

    text: str | None = None
    image: str | None = None


def _without_token_ids(wanted: Any) -> Any:
    if isinstance(wanted, list) and any(isinstance(one, int | list) for one in wanted):
        raise ValueError(
            "these are token ids, which another tokenizer made: send texts, as LangChain's OpenAIEmbeddings does with "
            "check_embedding_ctx_length=False"
        )
    return wanted


class EmbeddingsRequest(_Tolerant):
    """Texts, data URIs of images, Jina's objects (`input`), or images with edits (`messages`).

    model: the name of a collection. input_type, task: query or document (passage); if absent, an image alone is a
    document and everything else a query. dimensions: may be there if it is the width of the space.
    """

    model: str | None = None
    input: Annotated[
        str | JinaInput | list[str | JinaInput] | None,
        BeforeValidator(check_count),
        BeforeValidator(_without_token_ids),
    ] = None
    messages: Inputs[Message] | None = None
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = None
    input_type: str | None = None
    task: str | None = None


class EmbeddingData(Answer):
    """embedding: numbers, or base64 of little-endian float32. embeddings: of a gallery image of several vectors."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str | None = None
    embeddings: list[list[float]] | list[str] | None = None


class Usage(Answer):
    """Tokens of the texts."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingsAnswer(Answer):
    """One embedding per input, in their order. space: the fingerprint of the vector space."""

    object: Literal["list"] = "list"
    data: list[EmbeddingData]
    model: str
    usage: Usage
    space: str


class Model(Answer):
    """A collection as a model. space: the fingerprint of its vector space."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "cirrus"
    space: str
    dim: int
    vectors: int
    accepts: list[str]


class Models(Answer):
    """The collections as models."""

    object: Literal["list"] = "list"
    data: list[Model]


@router.post(
    "/v1/embeddings",
    response_model=EmbeddingsAnswer,
    response_model_exclude_none=True,
    openapi_extra=body(EmbeddingsRequest),
)
async def embeddings(request: Request) -> Response:
    """Return embeddings of texts, images, and images with edits."""
    wanted = await read_json(request, EmbeddingsRequest)
    name, version = service(request).registry.find(wanted.model)
    dim = version.spec.space.dim
    if wanted.dimensions not in (None, dim):
        raise InvalidRequest(f"the space of {name} has {dim} dimensions, and no fewer", field="dimensions")
    contents = await _contents(wanted, service(request).images)
    side = side_of(wanted.input_type, "input_type") or side_of(wanted.task, "task")
    found = await embed(version, contents, side)
    tokens = await tokens_of(version, contents)
    answer = EmbeddingsAnswer(
        data=[_data(index, one, wanted.encoding_format) for index, one in enumerate(found)],
        model=name,
        usage=Usage(prompt_tokens=tokens, total_tokens=tokens),
        space=version.space,
    )
    return Response(answer.model_dump_json(exclude_none=True), media_type="application/json")


@router.get("/v1/models", response_model=Models)
async def models(request: Request) -> Response:
    """Return the collections as models."""
    registry = service(request).registry
    return json_answer(Models(data=[_model(*registry.find(name)) for name in registry.names()]))


@router.get("/v1/models/{model}", response_model=Model)
async def model(request: Request, model: str) -> Response:
    """Return one collection as a model."""
    return json_answer(_model(*service(request).registry.find(model)))


def _model(name: str, version: Version) -> Model:
    return Model(
        id=name,
        created=int(version.opened.timestamp()),
        space=version.space,
        dim=version.spec.space.dim,
        vectors=version.spec.space.vectors,
        accepts=version.accepts(),
    )


async def content_of(parts: list[Part], place: int, images: ImageReader, *, field: str) -> Content:
    """Return what the parts of a message are. Raises InvalidRequest for two images, InvalidImage.

    place: of the message among those that are embedded. field: where it is in the request.
    """
    texts = [part.text for part in parts if part.type == "text" and part.text is not None]
    pictures = [part.image_url for part in parts if part.type == "image_url" and part.image_url is not None]
    if len(pictures) > 1 or len(texts) > 1 or len(texts) + len(pictures) < len(parts):
        raise InvalidRequest(f"input {place}: a message has one image, one text, or both", field=field)
    image = None
    for picture in pictures:
        image = await _read(picture if isinstance(picture, str) else picture.url, place, images)
    return Content(image, texts[0] if texts else None)


async def _contents(wanted: EmbeddingsRequest, images: ImageReader) -> list[Content]:
    if (wanted.input is None) == (wanted.messages is None):
        raise InvalidRequest("give one of 'input' and 'messages'", field="input")
    if wanted.messages is not None:
        return await _of_messages(wanted.messages, images)
    inputs = wanted.input if isinstance(wanted.input, list) else [wanted.input]
    return [await _content(one, place, images) for place, one in enumerate(inputs)]


async def _of_messages(messages: list[Message], images: ImageReader) -> list[Content]:
    contents: list[Content] = []
    instruction = None
    for number, message in enumerate(messages):
        field = f"messages.{number}.content"
        parts = [Part(type="text", text=message.content)] if isinstance(message.content, str) else message.content
        content = await content_of(parts, len(contents), images, field=field)
        if message.role == "user":
            contents.append(replace(content, instruction=instruction))
        elif content.image is not None or (message.role == "assistant" and content.text):
            raise InvalidRequest(
                "a user's message is embedded: a system message is a text, and an assistant's is empty", field=field
            )
        elif message.role != "assistant":
            instruction = content.text
    if messages and not contents:
        raise InvalidRequest("there is no message of a user, whose image or text is embedded", field="messages")
    return contents


async def _content(one: Any, place: int, images: ImageReader) -> Content:
    if isinstance(one, JinaInput):
        image = None if one.image is None else await _read(one.image, place, images)
        return Content(image, one.text)
    if one.startswith("data:image/"):
        try:
            return Content(from_data_uri(one))
        except InvalidImage as error:
            raise error.at("input", place) from None
    return Content(text=one)


async def _read(text: str, place: int, images: ImageReader) -> bytes:
    try:
        return await images.read(text)
    except InvalidImage as error:
        raise error.at("input", place) from None


def _data(index: int, embedding: Embeddings, encoding: str | None) -> EmbeddingData:
    if embedding.ndim == 2:
        several: Any = [as_base64(one) if encoding == "base64" else one.tolist() for one in embedding]
        return EmbeddingData(index=index, embeddings=several)
    return EmbeddingData(index=index, embedding=as_base64(embedding) if encoding == "base64" else embedding.tolist())
