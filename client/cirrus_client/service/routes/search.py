"""`POST /v1/search`."""

from __future__ import annotations

import json

from fastapi import APIRouter, Request
from starlette.responses import Response

from cirrus_client.errors import InvalidRequest
from cirrus_client.service.body import form_value, is_form, parse, read_form, read_json
from cirrus_client.service.fetch import ImageReader
from cirrus_client.service.models import SearchAnswer, SearchRequest
from cirrus_client.service.openapi import PROBLEMS, body
from cirrus_client.service.routes.parts import json_answer, service
from cirrus_client.service.search import Composed, Reference, answer, composed
from cirrus_client.service.stopwatch import Stopwatch

router = APIRouter(tags=["search"], responses=PROBLEMS)
_AS_TEXT = ("collection", "unique")
_FORM = {
    "type": "object",
    "properties": {
        "image": {"type": "string", "format": "binary", "description": "the file of the reference image"},
        "id": {"type": "string"},
        "text": {"type": "string"},
        "collection": {"type": "string"},
        "k": {"type": "integer", "minimum": 1},
        "offset": {"type": "integer", "minimum": 0},
        "filter": {"type": "string", "description": "a filter as JSON text"},
        "unique": {"type": "string"},
        "min_score": {"type": "number"},
        "fold": {"type": "number"},
        "include_reference": {"type": "boolean"},
        "rerank": {"type": "integer", "minimum": 1},
    },
    "additionalProperties": False,
}


@router.post("/v1/search", response_model=SearchAnswer, openapi_extra=body(SearchRequest, form=_FORM))
async def search(request: Request) -> Response:
    """Search: an image or an item, but as the text says. JSON holds several queries, a form one and its file."""
    watch = Stopwatch()
    request.state.watch = watch
    with service(request).metrics.search(watch):
        wanted, queries = await _read(request, service(request).images)
        name, version = service(request).registry.find(wanted.collection)
        request.state.collection = name
        return json_answer(await answer(version, name, wanted, queries, watch))


async def _read(request: Request, images: ImageReader) -> tuple[SearchRequest, list[Composed]]:
    if not is_form(request):
        wanted = await read_json(request, SearchRequest)
        return wanted, [await composed(query, place, images) for place, query in enumerate(wanted.queries)]
    fields = await read_form(request)
    image = fields.pop("image", None)
    query = {name: fields.pop(name) for name in ("id", "text") if name in fields}
    if isinstance(image, str) or any(isinstance(value, bytes) for value in query.values()):
        raise InvalidRequest("of the form's fields, 'image' alone is a file, and it is one", field="image")
    if "queries" in fields:
        raise InvalidRequest("a form has one query, in the fields 'image', 'id' and 'text'", field="queries")
    rest = {name: fields[name] if name in _AS_TEXT else form_value(fields, name) for name in fields}
    wanted = parse(_json({**rest, "queries": [query]}), SearchRequest)
    one = wanted.queries[0]
    return wanted, [(Reference(image, one.id, one.text),)]


def _json(content: object) -> str:
    try:
        return json.dumps(content)
    except TypeError:
        raise InvalidRequest("of the form's fields, 'image' alone is a file", field="image") from None
