"""The OpenAPI document is one, and requests made from it, right and wrong, never make the service fail."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from cirrus_client.service.door.gate import Access
from cirrus_client.service.door.keys import Keys
from tests.service.live import live

KEY = "k" * 24
_CHECKS = ",".join(
    (
        "not_a_server_error",
        "status_code_conformance",
        "content_type_conformance",
        "response_schema_conformance",
        "negative_data_rejection",
        "unsupported_method",
        "ignored_auth",
    )
)


@pytest.mark.slow
def test_every_endpoint_with_its_key_under_schemathesis(bundle, index_root, text_source, tmp_path: Path) -> None:
    pytest.importorskip("schemathesis", reason="schemathesis is not installed")
    further = f"texts={text_source.bundle},{text_source.index}"
    options = ("--index", index_root, "--collection", further, "--in-process")
    with live(tmp_path, bundle.root, *options, CIRRUS_API_KEYS=f"test={KEY}") as service:
        command = [sys.executable, "-m", "schemathesis.cli", "run", f"{service.url}/openapi.json"]
        tuned = ["--checks", _CHECKS, "--max-examples", "15", "--generation-deterministic"]
        done = subprocess.run(
            [*command, *tuned, "--header", f"Authorization: Bearer {KEY}"],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
        assert done.returncode == 0, done.stdout[-6_000:] + done.stderr[-2_000:]
    assert "a defect of Cirrus" not in service.log.read_text()


def test_the_document_describes_every_body_and_problem(client) -> None:
    document = client.get("/openapi.json").json()
    assert document["openapi"].startswith("3.1")
    schemas = document["components"]["schemas"]
    assert {"SearchRequest", "Problem", "And", "Compare", "EmbeddingsRequest", "KnnRequest"} <= set(schemas)
    references = set(find(document, "$ref"))
    assert {reference.rpartition("/")[2] for reference in references} <= set(schemas)
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            assert "default" in operation["responses"], path
            assert "security" not in operation, path
            assert method == "get" or "requestBody" in operation or path.endswith("/reload"), path


def test_the_document_is_one_that_generators_of_clients_read(client) -> None:
    """The others that are not in CI: OpenAPI Generator's for Python, openapi-typescript and hey-api."""
    document = client.get("/openapi.json").json()
    schemas = document["components"]["schemas"]
    assert schemas["SearchRequest"]["properties"]["filter"]["anyOf"][0] == {"$ref": "#/components/schemas/Filter"}
    for name, schema in schemas.items():
        for field, of_field in schema.get("properties", {}).items():
            assert of_field.get("default", "") is not None, f"{name}.{field} would always be there in TypeScript"
            kinds = [kind for kind in of_field.get("anyOf", ()) if kind != {"type": "null"}]
            class_of_field = of_field.get("title", "").replace(" ", "")
            assert len(kinds) < 2 or class_of_field not in schemas, f"{name}.{field} has the name of another schema"
    for operations in document["paths"].values():
        for operation in operations.values():
            assert any(parameter["name"] == "X-Request-ID" for parameter in operation["parameters"])


def test_the_document_is_the_same_each_time(client) -> None:
    """Every request added a parameter to every operation."""
    first, second = (client.get("/openapi.json").content for _ in range(2))
    assert first == second


def test_the_document_says_what_needs_a_key(serve) -> None:
    locked = serve(access=Access(Keys({"page": KEY}), only_loopback=False))
    paths = locked.get("/openapi.json").json()["paths"]
    open_ = {path for path, operations in paths.items() if not any("security" in one for one in operations.values())}
    assert open_ == {"/healthz", "/readyz", "/v1/session"}
    for path in set(paths) - open_:
        assert 401 in {locked.get(path).status_code, locked.post(path).status_code}, path


def find(node: object, key: str) -> list[str]:
    if isinstance(node, dict):
        own = [node[key]] if isinstance(node.get(key), str) else []
        return own + [found for value in node.values() for found in find(value, key)]
    return [found for value in node for found in find(value, key)] if isinstance(node, list) else []
