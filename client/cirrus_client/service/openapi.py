"""Complete the OpenAPI document: the bodies that endpoints read themselves, and the problems that they answer."""

from __future__ import annotations

from functools import cache
from typing import Any

from fastapi import FastAPI
from fastapi.routing import APIRoute
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from cirrus_client.service.door.gate import is_closed
from cirrus_client.service.models import Problem

_REFERENCE = "#/components/schemas/{model}"
_BODIES: list[type[BaseModel]] = []
_REQUEST_ID = {
    "name": "X-Request-ID",
    "in": "header",
    "description": "By which the request is found in the log: up to 64 letters, digits, dots, dashes and underscores.",
    "schema": {"type": "string"},
}

PROBLEMS: dict[int | str, dict[str, Any]] = {
    "default": {
        "description": "The request failed (RFC 9457).",
        "content": {"application/problem+json": {"schema": {"$ref": _REFERENCE.format(model="Problem")}}},
    }
}
"""What every endpoint answers if it fails."""

OPENAI_PROBLEMS: dict[int | str, dict[str, Any]] = {
    "default": {
        "description": "The request failed; `error` is as OpenAI words it.",
        "content": {"application/json": {"schema": {"$ref": _REFERENCE.format(model="Problem")}}},
    }
}
"""What the endpoints of OpenAI's API answer if they fail."""


def body(kind: type[BaseModel], *, form: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return what an endpoint that reads its body itself adds to its description. form: the schema of its form."""
    _BODIES.append(kind)
    content = {"application/json": {"schema": {"$ref": _REFERENCE.format(model=kind.__name__)}}}
    if form is not None:
        content["multipart/form-data"] = {"schema": form}
    return {"requestBody": {"required": True, "content": content}}


def operation_id(route: APIRoute) -> str:
    """Return the name by which generated clients call an endpoint: its function's."""
    return route.name


def complete(app: FastAPI, *, keys: bool) -> None:
    """Add schemas of bodies and problems to an application's OpenAPI document. keys: whether it asks for API keys."""
    described = app.openapi

    @cache  # the application returns one document each time, which would grow
    def openapi() -> dict[str, Any]:
        document = described()
        schemas = document.setdefault("components", {}).setdefault("schemas", {})
        kinds = [(kind, "validation" if kind is not Problem else "serialization") for kind in (*_BODIES, Problem)]
        _, added = models_json_schema(kinds, ref_template=_REFERENCE)  # type: ignore[arg-type]
        schemas |= added["$defs"]
        for schema in schemas.values():
            _without_null_defaults(schema)
        if keys:
            document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        for path, operations in document["paths"].items():
            for operation in operations.values():
                operation.get("responses", {}).pop("422", None)
                operation.setdefault("parameters", []).append(_REQUEST_ID)
                if keys and is_closed(path):
                    operation["security"] = [{"key": []}]
        return document

    app.openapi = openapi  # type: ignore[method-assign]


def _without_null_defaults(schema: dict[str, Any]) -> None:
    """Leave out defaults that are null: for generated clients of TypeScript, what has a default is always there."""
    for field in schema.get("properties", {}).values():
        if field.get("default", "") is None:
            del field["default"]
