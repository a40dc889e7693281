"""What a generator of clients makes of the OpenAPI document works on a real service."""

from __future__ import annotations

import importlib
import io
import os
import subprocess
import sys
import venv
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from tests.registry import need_registry
from tests.service.live import Live, live

pytestmark = [pytest.mark.install, pytest.mark.network]
GENERATOR = "openapi-python-client==0.29.1"
KEY = "k" * 24
NAME = "cirrus_search_client"


@pytest.fixture(scope="module")
def service(bundle, index_root, tmp_path_factory) -> Iterator[Live]:
    folder = tmp_path_factory.mktemp("generated")
    with live(folder, bundle.root, "--index", index_root, "--in-process", CIRRUS_API_KEYS=f"test={KEY}") as running:
        yield running


@pytest.fixture(scope="module")
def generator(tmp_path_factory) -> Path:
    """The folder of the generator's command, in an environment of its own: it allows no newer typer beside it."""
    need_registry()
    environment = tmp_path_factory.mktemp("generator")
    venv.create(environment, with_pip=True)
    run(environment / "bin" / "pip", "install", "--quiet", GENERATOR)
    return environment / "bin"


@pytest.fixture(scope="module")
def models(generator: Path, service: Live, tmp_path_factory) -> Iterator[ModuleType]:
    """The models of the generated package, which can be imported."""
    out = tmp_path_factory.mktemp("package")
    with service.client() as client:
        (out / "openapi.json").write_bytes(client.get("/openapi.json").content)
    places = ("--path", out / "openapi.json", "--output-path", out / NAME)
    path = f"{generator}{os.pathsep}{os.environ['PATH']}"  # where it finds its ruff
    command = generator / "openapi-python-client"
    run(command, "generate", *places, "--meta", "none", "--fail-on-warning", PATH=path)
    sys.path.insert(0, str(out))
    yield importlib.import_module(f"{NAME}.models")
    sys.path.remove(str(out))
    for name in [name for name in sys.modules if name.partition(".")[0] == NAME]:
        del sys.modules[name]


def run(*command: object, **environment: str) -> None:
    done = subprocess.run(
        [*map(str, command)], env=os.environ | environment, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture
def caller(service: Live, models: ModuleType) -> object:
    return importlib.import_module(NAME).AuthenticatedClient(service.url, token=KEY)


def endpoint(path: str) -> ModuleType:
    return importlib.import_module(f"{NAME}.api.{path}")


def test_a_composed_query_under_a_filter(caller, models) -> None:
    op = models.CompareOp
    cheap = models.Compare(column="price", op=op.AT_MOST, value=30)
    wanted = models.And(and_=[cheap, models.Not(not_=models.IsIn(column="brand", op="in", value=["a", "b"]))])
    query = models.Query(id="000003.jpg", text="in red", also=[models.Term(id="000008.jpg", weight=-0.5)])
    found = endpoint("search.search").sync(
        client=caller, body=models.SearchRequest(queries=[query], k=5, filter_=wanted)
    )
    items = found.results[0].items
    assert items
    assert all(item.metadata["price"] <= 30 and item.metadata["brand"] not in ("a", "b") for item in items)


def test_a_file_in_a_form_is_answered_as_its_bytes_in_json(caller, models, pictures: Path) -> None:
    types = importlib.import_module(f"{NAME}.types")
    search = endpoint("search.search")
    uploaded = types.File(io.BytesIO((pictures / "000003.jpg").read_bytes()), "x.jpg", "image/jpeg")
    by_form = search.sync(client=caller, body=models.SearchFilesBody(image=uploaded, text="in red", k=5))
    by_id = search.sync(
        client=caller, body=models.SearchRequest(queries=[models.Query(id="000003.jpg", text="in red")], k=5)
    )
    assert [one.id for one in by_form.results[0].items] == [one.id for one in by_id.results[0].items]


def test_items_images_embeddings_and_problems(caller, models, pictures: Path) -> None:
    item = endpoint("items.item").sync("000003.jpg", client=caller)
    assert (item.id, item.metadata["stock"]) == ("000003.jpg", -17)
    image = endpoint("items.item_image").sync("000003.jpg", client=caller)
    assert image.payload.read() == (pictures / "000003.jpg").read_bytes()
    parts = [models.Part(type_=models.PartType.TEXT, text="in red")]
    request = models.EmbeddingsRequest(messages=[models.Message(content=parts)])
    problem = endpoint("embeddings.embeddings").sync_detailed(client=caller, body=request)
    assert (problem.status_code, problem.parsed.type_) == (422, "urn:cirrus:UnsupportedQuery")
    assert endpoint("items.item").sync("unknown.jpg", client=caller).type_ == "urn:cirrus:UnknownItem"
