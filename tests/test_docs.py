"""What the pages under docs/ say is true: their code runs, and their tables name what there is."""

from __future__ import annotations

import ast
import asyncio
import contextlib
import importlib
import inspect
import io
import re
import shutil
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import typer

import cirrus_client
from cirrus_client import Bundle, LocalEncoder, Match, build_index, embed_gallery, errors, open_retriever, read_gallery
from cirrus_client.cli.app import app
from cirrus_client.triton.server import TritonServer
from tests.test_boundaries import imports_of
from tests.tiny import write_pictures, write_tiny_bundle

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
_BLOCK = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_FILE_NAME = re.compile(r"# (\w+\.py)\n")


def run_page(page: Path) -> dict[str, Any]:
    """Run a page's Python blocks in order and return their namespace; a block that names a file becomes that file."""
    namespace: dict[str, Any] = {"__name__": "page"}
    text = page.read_text()
    for block in _BLOCK.finditer(text):
        code = block[1]
        named = _FILE_NAME.match(code)
        if named is None:
            line = text.count("\n", 0, block.start(1))
            exec(compile("\n" * line + code, str(page), "exec"), namespace)
        else:
            Path(named[1]).write_text(code)
            importlib.invalidate_caches()
    return namespace


@pytest.fixture(scope="module")
def api_page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    """The names that the blocks of python-api.md leave behind, and the folder that they ran in, which is current."""
    folder = tmp_path_factory.mktemp("page")
    write_tiny_bundle(folder / "build" / "union")
    photos = write_pictures(folder / "photos", 60)
    shutil.copy(photos / "000007.jpg", folder / "dress.jpg")
    shutil.make_archive(str(folder / "photos"), "zip", photos)
    modules = set(sys.modules)
    with pytest.MonkeyPatch.context() as session:
        session.chdir(folder)
        session.syspath_prepend(folder)
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            names = run_page(DOCS / "python-api.md")
        yield SimpleNamespace(**names, folder=folder, printed=printed.getvalue())
    for name in set(sys.modules) - modules:
        if Path(getattr(sys.modules[name], "__file__", None) or "/").parent == folder:
            del sys.modules[name]


@pytest.mark.slow
def test_the_api_page_embeds_and_finds(api_page: SimpleNamespace) -> None:
    assert api_page.summary.embedded == 60
    assert api_page.summary.new == 0
    assert isinstance(api_page.match, Match)
    assert api_page.match.rank == 5


def test_the_api_pages_source_and_shared_writer_make_the_folders_gallery(api_page: SimpleNamespace) -> None:
    embedded = set(api_page.gallery.paths)
    for name in ("zip-gallery", "shared-gallery"):
        assert set(read_gallery(api_page.folder / "build" / name).paths) == embedded
    assert len(list(read_gallery(api_page.folder / "build" / "shared-gallery").shards())) == 8


def test_the_api_pages_index_measures_its_agreement_and_keeps_metadata(api_page: SimpleNamespace) -> None:
    assert api_page.manifest.agreement.source == "queries of last week"
    first = api_page.saved.items.rows(range(60))
    assert {item.id: item.metadata["title"] for item in first}["000001.jpg"] == "striped shirt"
    assert {match.metadata["title"] for match in api_page.titled} == {"red dress", "striped shirt"}
    assert all(item.image == f"https://images.example/photos/{item.id}" for item in first)


def test_the_api_pages_plug_ins_answer_as_the_built_in_ones_do(api_page: SimpleNamespace) -> None:
    expected = api_page.retriever.search(image="dress.jpg", text="in blue", k=3)
    assert [match.id for match in api_page.same] == [match.id for match in expected]
    assert [match.id for match in api_page.in_blue[:3]] == [match.id for match in expected]
    assert [match.rerank_score for match in api_page.darkest] == sorted(
        (match.rerank_score for match in api_page.darkest), reverse=True
    )
    assert api_page.embedding == pytest.approx(api_page.encoder.encode_queries(["dress.jpg"], ["in blue"]), abs=1e-5)


def test_the_api_pages_searches_through_a_server_answer_as_the_local_one_does(
    api_page: SimpleNamespace, server: TritonServer, bundle: Bundle, tmp_path: Path, monkeypatch
) -> None:
    shutil.copy("dress.jpg", tmp_path)
    encoder = LocalEncoder(bundle)
    embed_gallery("photos", tmp_path / "build" / "gallery", encoder)
    build_index(read_gallery(tmp_path / "build" / "gallery"), tmp_path / "build" / "index")
    monkeypatch.chdir(tmp_path)
    answers = [
        api_page.search_on_server(server.grpc_url),
        asyncio.run(api_page.search_with_asyncio(server.grpc_url)),
        open_retriever(encoder, "build/index").search(image="dress.jpg", text="in blue", k=3),
    ]
    on_server, with_asyncio, here = ([match.id for match in answer] for answer in answers)
    assert on_server == with_asyncio == here


def test_the_api_page_reports_which_query_is_bad(api_page: SimpleNamespace) -> None:
    assert "InvalidImage query 1 | the bytes are not an image" in api_page.printed


def test_the_api_page_names_everything_public() -> None:
    page = (DOCS / "python-api.md").read_text()
    table = page.partition("## Every name")[2]
    named = set(re.findall(r"`(\w+)`", "\n".join(line.split("|")[1] for line in table.splitlines() if "|" in line)))
    assert named == set(cirrus_client.__all__)


def test_contributors_are_told_every_marker() -> None:
    markers = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]["markers"]
    table = (ROOT / "CONTRIBUTING.md").read_text().partition("| marker |")[2].partition("\n\n")[0]
    assert set(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)) == {marker.partition(":")[0] for marker in markers}


def test_the_api_page_names_every_extra() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    table = (DOCS / "python-api.md").read_text().partition("## Extras")[2].partition("\n## ")[0]
    named = re.findall(r"`([\w-]+)`", " ".join(re.findall(r"^\| (`.*?) \|", table, re.MULTILINE)))
    assert sorted(named) == sorted(extras.keys() - {"dev"})


def test_the_api_page_lists_the_attributes_of_every_error_that_has_some() -> None:
    table = (DOCS / "python-api.md").read_text().partition("| error | attributes |")[2].partition("\n\n")[0]
    listed = {
        kind: set(re.findall(r"`([a-z_]+)`", attributes))
        for kinds, attributes in re.findall(r"^\| (.*?) \| (.*) \|$", table, re.MULTILINE)
        for kind in re.findall(r"`(\w+)`", kinds)
    }
    kinds = (kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.CirrusError))
    own = {
        kind.__name__: set(inspect.signature(kind.__init__).parameters) - {"self", "message", "args", "kwargs"}
        for kind in kinds
    }
    assert listed == {name: attributes for name, attributes in own.items() if attributes}


def test_the_api_page_names_every_entry_point_group() -> None:
    sources = [path for package in ("client", "export") for path in (ROOT / package).rglob("*.py")]
    groups = {group for path in sources for group in re.findall(r'"(cirrus\.[a-z]+)"', path.read_text())}
    named = set(re.findall(r"^\| `(cirrus\.[a-z]+)`", (DOCS / "python-api.md").read_text(), re.MULTILINE))
    assert groups <= named


@pytest.mark.parametrize("page", ["reliability.md", "security.md"])
def test_every_claim_of_a_page_names_tests_that_there_are(page: str) -> None:
    rows = re.findall(r"^\| (.*) \|$", (DOCS / page).read_text(), re.MULTILINE)
    claims = [row for row in rows if not row.endswith("tested by") and not set(row) <= set("-| ")]
    there = {
        name for path in (ROOT / "tests").rglob("*.py") for name in re.findall(r"def (test_\w+)", path.read_text())
    }
    assert len(claims) > 10
    for claim in claims:
        named = set(re.findall(r"`(test_\w+)`", claim.rpartition(" | ")[2]))
        assert named, f"no test is named: {claim}"
        assert named <= there


@pytest.mark.slow
def test_the_troubleshooting_page_explains_every_error_and_no_other() -> None:
    explained = re.findall(r"^### `(\w+)`$", (DOCS / "troubleshooting.md").read_text(), re.MULTILINE)
    assert len(explained) == len(set(explained))
    assert set(explained) == errors_of("client", "export", "bench")


ARROWS = {
    package: (folder, set(re.findall(r"`(\w+)`", allowed)))
    for package, folder, allowed in re.findall(
        r"^\| `(\w+)` \| `([\w/]+)` \| ([^|]*)\|", (DOCS / "architecture.md").read_text(), re.MULTILINE
    )
}


@pytest.mark.parametrize("package", ARROWS)
@pytest.mark.slow
def test_a_package_imports_those_that_the_architecture_page_says(package: str) -> None:
    folder, allowed = ARROWS[package]
    assert imports_of(ROOT / folder) & set(ARROWS) - {package} == allowed


def test_the_picture_has_the_arrows_and_floors_of_the_architecture_page() -> None:
    picture = (DOCS / "architecture.svg").read_text()
    drawn = set(re.findall(r'data-from="(\w+)" data-to="(\w+)"', picture))
    assert drawn == {(package, imported) for package, (_, allowed) in ARROWS.items() for imported in allowed}
    rooms: dict[str, list[str]] = {}
    for floor, line in re.findall(r'data-floor="(\w+)"[^>]*>([^<]*)<', picture):
        rooms.setdefault(floor, []).extend(re.findall(r"\w+", line))
    assert rooms == floors()


def test_rooms_of_the_client_import_what_is_below_them() -> None:
    order = [room for rooms in floors().values() for room in rooms]
    client = ROOT / "client" / "cirrus_client"
    found = {path.relative_to(client).parts[0].removesuffix(".py") for path in client.rglob("*.py")}
    assert found - {"__init__"} == set(order), "docs/architecture.md: its table of floors lists every room"
    for path in client.rglob("*.py"):
        room = path.relative_to(client).parts[0].removesuffix(".py")
        if room != "__init__":
            above = set(order[: order.index(room)])
            assert above.isdisjoint(rooms_imported_by(path)), f"{path} imports a room that stands above its own"


def floors() -> dict[str, list[str]]:
    """Return the rooms of the client by floor, from the top, as the architecture page lists them."""
    table = (DOCS / "architecture.md").read_text().partition("| floor | rooms |")[2].partition("\n\n")[0]
    return {floor: re.findall(r"`(\w+)`", rooms) for floor, rooms in re.findall(r"\| (\w+) \| (.*) \|", table)}


def rooms_imported_by(path: Path) -> set[str]:
    modules = (node.module or "" for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom))
    return {module.split(".")[1] for module in modules if module.startswith("cirrus_client.")}


PAGES = sorted([*DOCS.glob("*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_within_the_documentation_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)\s]+)\)", page.read_text()):
        file, _, anchor = target.partition("#")
        linked = page.parent / file if file else page
        assert linked.exists(), target
        assert not anchor or anchor in anchors_of(linked), target


def anchors_of(page: Path) -> set[str]:
    """Return the anchors that GitHub gives to a page's headings."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_in_the_documentation_exists_with_its_options(page: Path) -> None:
    for line in re.findall(r"^    (?:\$ )?(cirrus (?:[^#\n]|\\\n)*)", page.read_text(), re.MULTILINE):
        words = line.replace("\\\n", " ").split()[1:]
        command: Any = typer.main.get_command(app)
        while words and hasattr(command, "commands") and not words[0].startswith("-"):
            command = command.commands[words.pop(0)]
        known = {option for parameter in command.params for option in parameter.opts}
        options = {word.partition("=")[0] for word in words if re.match(r"--?[a-z]", word)}
        assert options <= known | {"--help"}, line


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_make_target_in_the_documentation_exists(page: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"(?:`|^ {4})make ([a-z-]+)", page.read_text(), re.MULTILINE)) <= targets


def errors_of(*packages: str) -> set[str]:
    """Return the names of all classes below CirrusError, read from the source: importing all would import torch."""
    bases: dict[str, set[str]] = {}
    for path in (path for package in packages for path in (ROOT / package).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                bases[node.name] = {base.id for base in node.bases if isinstance(base, ast.Name)}
    found = {"CirrusError"}
    while more := {name for name, parents in bases.items() if parents & found} - found:
        found |= more
    return found
