"""The distributions as a user gets them: built, installed without constraints, and used from another folder.

One environment has everything (`[cpu,serve,export,service]` and the demo), one is the light client alone, and one has
the lowest versions that pyproject.toml allows.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tomllib
import urllib.request
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from cirrus_bench.service.process import serving
from cirrus_client.triton.server import free_ports
from tests.registry import need_registry

pytestmark = [pytest.mark.install, pytest.mark.network]

ROOT = Path(__file__).parents[2]
_NOT_SOURCES = shutil.ignore_patterns(".git", ".venv", "build", "dist", "*.egg-info", "__pycache__", ".*_cache")


@dataclass(frozen=True)
class Environment:
    """A virtual environment, and the folder from which its commands run."""

    root: Path
    work: Path

    def python(self, *arguments: object) -> str:
        return self.run("python", *arguments)

    def cirrus(self, *arguments: object) -> str:
        return self.run("cirrus", *arguments)

    def shell(self, line: str) -> str:
        """Run a line as somebody types it, with this environment activated."""
        path = f"{self.root / 'bin'}{os.pathsep}{os.environ['PATH']}"
        return self._run(["bash", "-c", line], self.variables() | {"PATH": path})

    def run(self, command: str, *arguments: object) -> str:
        return self._run([str(self.root / "bin" / command), *map(str, arguments)], self.variables())

    def _run(self, command: list[str], variables: dict[str, str]) -> str:
        done = subprocess.run(
            command, cwd=self.work, env=variables, capture_output=True, text=True, check=False, timeout=600
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def variables(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
        return kept | {"XDG_CACHE_HOME": str(self.work / "cache"), "COLUMNS": "80"}

    def install(self, *arguments: object) -> None:
        self.python("-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-compile", *arguments)


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """The folder with the sdist, the wheel that was built from it, and the demo's wheel."""
    need_registry()
    base = tmp_path_factory.mktemp("dist")
    tree = base / "tree"
    shutil.copytree(ROOT, tree, symlinks=True, ignore=_NOT_SOURCES)
    build(tree, base / "dist")
    build("--wheel", tree, base / "from-tree")
    build("--wheel", tree / "export" / "cirrus_demo", base / "dist")
    return base / "dist"


def build(*arguments: object) -> None:
    *options, source, out = map(str, arguments)
    command = [sys.executable, "-m", "build", *options, "--outdir", out, source]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr


def wheel_in(folder: Path, name: str = "cirrus_cir") -> Path:
    (wheel,) = folder.glob(f"{name}-[0-9]*.whl")
    return wheel


def new_environment(tmp_path_factory, name: str) -> Environment:
    base = tmp_path_factory.mktemp(name)
    (base / "work").mkdir()
    subprocess.run([sys.executable, "-m", "venv", base / "env"], check=True)
    return Environment(base / "env", base / "work")


@pytest.fixture(scope="module")
def full(built, tmp_path_factory) -> Environment:
    """The newest versions of everything but torch: its CPU build is installed first, as PyTorch's own page says."""
    environment = new_environment(tmp_path_factory, "full")
    environment.install(pinned("torch"))
    environment.install("--no-deps", pinned("torchvision"), "timm")
    environment.install(f"{wheel_in(built)}[cpu,serve,export,service]", wheel_in(built, "cirrus_cir_demo"))
    return environment


@pytest.fixture(scope="module")
def light(built, tmp_path_factory) -> Environment:
    environment = new_environment(tmp_path_factory, "light")
    environment.install(wheel_in(built))
    return environment


@pytest.fixture(scope="module")
def lowest(built, tmp_path_factory) -> Environment:
    environment = new_environment(tmp_path_factory, "lowest")
    environment.install(f"{wheel_in(built)}[cpu,service]", *lowest_versions("search", "cpu", "service"))
    return environment


def lowest_versions(*extras: str) -> list[str]:
    """The lowest version of each package that Cirrus and its extras require."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lists = [project["dependencies"], *(project["optional-dependencies"][extra] for extra in extras)]
    allowed = [Requirement(one) for lines in lists for one in lines if not one.startswith("cirrus-cir")]
    return [f"{one.name}=={bound.version}" for one in allowed for bound in one.specifier if bound.operator == ">="]


def pinned(package: str) -> str:
    """The requirement of a package as constraints.txt has it."""
    found = re.search(rf"^{package}==.*$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert found is not None
    return found[0]


def readme_commands() -> list[str]:
    """The commands of the README's section on export, serve and search, in order."""
    section = (ROOT / "README.md").read_text().split("## Export, serve, search")[1].split("\n## ")[0]
    lines = "\n".join(
        line[4:]
        for line in section.splitlines()
        if line.startswith(("    cirrus", "    python -m", "    curl")) or line[:8].isspace()
    )
    return lines.replace("\\\n", " ").splitlines()


@pytest.fixture(scope="module")
def page(full) -> list[str]:
    """The README's page, done as far as it needs no server: what every command printed."""
    commands = readme_commands()
    assert commands[-3].startswith("cirrus serve build/union --index build/index")
    return [full.shell(command) for command in commands[:-3]]


@pytest.fixture(scope="module")
def bundle(full, page) -> Path:
    """The demo, exported by the installed package."""
    return full.work / "build" / "union"


@pytest.fixture(scope="module")
def photos(full, page) -> Path:
    return full.work / "photos"


@pytest.fixture(scope="module")
def index(full, page) -> Path:
    return full.work / "build" / "index"


@dataclass(frozen=True)
class Served:
    """The addresses, host:port, of a running `cirrus serve BUNDLE --index INDEX`."""

    triton: str
    service: str


@pytest.fixture(scope="module")
def served(full, bundle, index) -> Iterator[Served]:
    """The search service on Triton, which must stop cleanly."""
    http, grpc, metrics, port = map(str, free_ports(4))
    ports = ("--http-port", http, "--grpc-port", grpc, "--metrics-port", metrics, "--port", port)
    command = [full.root / "bin" / "cirrus", "serve", bundle, "--index", index, *ports]
    process = subprocess.Popen(
        [*map(str, command)],
        cwd=full.work,
        env=full.variables(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    said = []
    for line in process.stdout:
        said.append(line)
        if "search at http" in line:
            break
    assert "search at http" in "".join(said[-1:]), said
    yield Served(f"127.0.0.1:{grpc}", f"127.0.0.1:{port}")
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 128 + signal.SIGTERM


@pytest.fixture(scope="module")
def server(served) -> str:
    """host:port of Triton."""
    return served.triton


def test_the_sdist_and_the_tree_build_the_same_wheel(built) -> None:
    from_sdist, from_tree = (
        {entry.filename: entry.CRC for entry in zipfile.ZipFile(wheel_in(folder)).infolist()}
        for folder in (built, built.parent / "from-tree")
    )
    assert from_sdist == from_tree
    names = set(from_sdist)
    assert {"cirrus_client/py.typed", "cirrus_client/triton/models/tokenize/model.py"} <= names
    assert not any(name.startswith(("tests", "cirrus_demo", "triton_models")) for name in names)


def test_the_installed_package_is_the_one_that_runs(full) -> None:
    found = full.python("-c", "import cirrus_client, cirrus_export, cirrus_bench; print(cirrus_client.__file__)")
    assert Path(found.strip()).is_relative_to(full.root)


def test_the_doctor_finds_nothing_broken(full) -> None:
    report = full.cirrus("doctor")
    for part in ("light client", "ONNX Runtime", "OpenVINO", "FAISS", "Triton server", "export"):
        assert re.search(rf"^ok +{part} ", report, re.MULTILINE), report


def test_the_readmes_page_works_as_it_stands(full, page, bundle, served) -> None:
    said = "\n".join(page)
    for phrase in ("fidelity gate passed", "200 images embedded", "200 images", "rank"):
        assert phrase in said
    assert (full.work / "results.png").stat().st_size > 10_000
    curl, search = readme_commands()[-2:]
    answer = json.loads(full.shell(curl.replace("127.0.0.1:8080", served.service)))
    assert len(answer["results"][0]["items"]) == 5
    assert "rank" in full.shell(search.replace("127.0.0.1:8001", served.triton))
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert [line.split()[0] for line in full.python("-c", code).splitlines()] == ["1", "2", "3", "4", "5"]
    assert "fidelity gate passed" in full.cirrus("verify", bundle)


def test_the_server_answers_as_this_process_does(full, bundle, index, photos, server) -> None:
    search = ("search", photos / "000003.jpg", "in blue", "--index", index, "--json")
    served = json.loads(full.cirrus(*search, "--server", server))
    local = json.loads(full.cirrus(*search, "--bundle", bundle))
    assert [match["image"] for match in served] == [match["image"] for match in local]


def test_the_light_client_starts_and_embeds_through_the_server(light, bundle, photos, server) -> None:
    assert "embed" in light.cirrus("--help")
    assert re.search(r"^ok +light client ", light.cirrus("doctor"), re.MULTILINE)
    assert "fidelity gate passed" in light.cirrus("verify", bundle)
    assert "200 images embedded" in light.cirrus("embed", photos, "--server", server, "--out", "gallery")


def test_the_light_client_names_the_extra_that_a_command_needs(light, bundle, photos) -> None:
    commands = {
        (
            "export",
            "--recipe",
            "clip",
            "--backbone",
            "ViT-B-32",
            "--out",
            "out",
        ): "torch: pip install 'cirrus-cir[export]'",
        ("embed", photos, "--bundle", bundle, "--out", "out"): "onnxruntime: pip install 'cirrus-cir[cpu]'",
        ("serve", bundle): "nvidia-pytriton",
    }
    for command, way_out in commands.items():
        with pytest.raises(AssertionError, match=re.escape(way_out)) as caught:
            light.cirrus(*command)
        assert "Traceback" not in str(caught.value)


def test_the_lowest_versions_that_are_allowed_embed_search_and_serve(lowest, tiny_bundle, pictures) -> None:
    assert "embed" in lowest.cirrus("--help")
    assert "60 images embedded" in lowest.cirrus("embed", pictures, "--bundle", tiny_bundle.root, "--out", "gallery")
    lowest.cirrus("index", "gallery", "--out", "index", "--kind", "rabitq")
    assert "rank" in lowest.cirrus(
        "search", min(pictures.iterdir()), "in blue", "--bundle", tiny_bundle.root, "--index", "index"
    )
    (port,) = free_ports(1)
    url = f"http://127.0.0.1:{port}"
    cirrus, index = lowest.root / "bin" / "cirrus", lowest.work / "index"
    command = [cirrus, "serve", tiny_bundle.root, "--index", index, "--in-process", "--port", port]
    with (
        serving([*map(str, command)], f"{url}/healthz", log=lowest.work / "service.log"),
        urllib.request.urlopen(url) as page,
    ):
        assert b"<html" in page.read()


def test_the_lowest_pillow_sees_a_decoded_image_as_its_file(lowest) -> None:
    lowest.python("-c", DECODED)


DECODED = """
import io
import numpy as np
from PIL import Image
from cirrus_client.image.decode import decode
from cirrus_client.image.inputs import image_bytes

colours = Image.effect_noise((40, 60), 90).convert("RGB")
seen = np.asarray(decode(image_bytes(colours.convert("YCbCr"))).convert("RGB")).astype(int)
assert np.abs(seen - np.asarray(colours)).max() <= 3

xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
xmp += b'<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6"/></rdf:RDF></x:xmpmeta>'
file = io.BytesIO()
colours.save(file, "WEBP", lossless=True, xmp=xmp)
turned, in_memory = (decode(one).convert("RGB") for one in (file.getvalue(), image_bytes(Image.open(file))))
assert turned.size == in_memory.size == (60, 40)
assert turned.tobytes() == in_memory.tobytes()
"""
