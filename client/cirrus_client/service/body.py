"""Read requests: JSON of a model, or a form with a file."""

from __future__ import annotations

import json
import reprlib
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from python_multipart.multipart import parse_options_header
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request

from cirrus_client.errors import InvalidRequest
from cirrus_client.invalid_fields import first_problem

M = TypeVar("M", bound=BaseModel)
FORM = "multipart/form-data"
_MAX_FIELDS = 20


async def read_json(request: Request, kind: type[M]) -> M:
    """Return the JSON body of a request as a model. Raises InvalidRequest, with the first wrong field."""
    return parse(await request.body(), kind)


def parse(content: bytes | str, kind: type[M]) -> M:
    """Return JSON text as a model. Raises InvalidRequest, with the first wrong field."""
    try:
        return kind.model_validate_json(content)
    except ValidationError as error:
        field, found = first_problem(error, content)
        raise InvalidRequest(f"the request: {found}; see /openapi.json", field=field) from None


def is_form(request: Request) -> bool:
    """Return whether a request has a form with files."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower() == FORM


async def read_form(request: Request) -> dict[str, str | bytes]:
    """Return the fields of a form; files as bytes. A field in which a browser's user chose no file is left out.

    Raises InvalidRequest for a broken form or a field given twice.
    """
    _check_end(await request.body(), request.headers["content-type"])
    try:
        async with request.form(max_files=_MAX_FIELDS, max_fields=_MAX_FIELDS, max_part_size=2**20) as form:
            fields: dict[str, str | bytes] = {}
            for name, value in form.multi_items():
                if name in fields:
                    raise InvalidRequest(f"the form has the field {name!r} twice", field=name)
                content = await value.read() if isinstance(value, UploadFile) else value
                if content or not isinstance(value, UploadFile) or value.filename:
                    fields[name] = content
            return fields
    except HTTPException as error:
        raise InvalidRequest(f"the form is broken: {error.detail}") from None


def form_value(fields: dict[str, str | bytes], name: str) -> Any:
    """Return a field of a form as JSON would have it: text that is a number, object or boolean is that."""
    value = fields[name]
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        raise InvalidRequest(
            f"the form's field {name!r} is not JSON, like 10, true, or {{...}}: it is {reprlib.repr(value)}", field=name
        ) from None


def _check_end(form: bytes, content_type: str) -> None:
    """Raise InvalidRequest for a form that was cut off, whose last field would not be noticed to be missing."""
    _, options = parse_options_header(content_type)
    boundary = options.get(b"boundary")
    if boundary is not None and b"--" + boundary + b"--" not in form:
        raise InvalidRequest("the form is broken: it ends without its last boundary, behind which its last field ends")
