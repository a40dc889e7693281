"""The light client starts without any optional package, and says which extra brings the one that a job needs."""

from __future__ import annotations

import subprocess
import sys

import pytest

from cirrus_client.errors import MissingPackage
from cirrus_client.extras import REQUIREMENTS, need

pytestmark = pytest.mark.slow

BLOCK = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {blocked!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Block())
"""


def run_without(blocked: set[str], script: str) -> subprocess.CompletedProcess[str]:
    """Run a script in a new interpreter in which the blocked packages are not installed."""
    command = [sys.executable, "-c", BLOCK.format(blocked=sorted(blocked)) + script]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


def test_the_client_imports_without_any_optional_package() -> None:
    script = (
        "import cirrus_client.encoders, cirrus_client.engines, cirrus_client.gallery, cirrus_client.index\n"
        "import cirrus_client.retriever, cirrus_client.suggest, cirrus_client.triton.server\n"
        "import cirrus_client.canary, cirrus_client.service.client, cirrus_client.service.options\n"
        "import cirrus_client.cli.embed, cirrus_client.cli.search, cirrus_client.cli.serve, cirrus_client.cli.mcp\n"
    )
    done = run_without(set(REQUIREMENTS), script)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("package", "script", "message"),
    [
        (
            "faiss",
            "from cirrus_client.index.faiss_file import read_faiss; read_faiss(None, None, None, None)",
            "search needs faiss: pip install 'cirrus-cir[search]'; with an NVIDIA GPU: 'cirrus-cir[gpu]'",
        ),
        (
            "onnxruntime",
            "from cirrus_client.engines.onnx_runtime import available_providers; available_providers()",
            "running a graph in this process needs onnxruntime: pip install 'cirrus-cir[cpu]'; "
            "with an NVIDIA GPU: 'cirrus-cir[gpu]'",
        ),
        (
            "httpx2",
            "from cirrus_client import SearchClient; SearchClient('http://localhost:8080')",
            "SearchClient needs httpx2: pip install 'cirrus-cir[service]'",
        ),
        (
            "ray",
            "from cirrus_client.gallery.cluster import connected; connected('auto').__enter__()",
            "--ray needs ray: pip install 'cirrus-cir[ray]'",
        ),
        (
            "pymilvus",
            "from cirrus_client.index.milvus.connection import connected; connected('http://milvus', named=True)",
            "the index backend milvus needs pymilvus: pip install 'cirrus-cir[milvus]'",
        ),
        (
            "milvus_lite",
            "from cirrus_client.index.milvus.connection import connected; connected('milvus.db', named=True)",
            "Milvus in milvus.db needs milvus_lite: pip install 'cirrus-cir[milvus-lite]'",
        ),
        (
            "fsspec",
            "from cirrus_client.gallery import open_source; open_source('s3://bucket/photos').list()",
            "reading s3://bucket/photos needs fsspec: pip install 'cirrus-cir[sources]'",
        ),
        (
            "s3fs",
            "from cirrus_client.gallery import open_source; open_source('s3://bucket/photos').list()",
            "reading s3://bucket/photos needs a package of fsspec (Install s3fs to access S3); "
            "'cirrus-cir[sources]' has what s3 needs",
        ),
        (
            "opentelemetry",
            "from cirrus_client.service.tracing import OpenTelemetry; OpenTelemetry('http://localhost:4318')",
            "traces needs opentelemetry: pip install 'cirrus-cir[otel]'",
        ),
    ],
)
def test_a_missing_package_is_named_with_its_extra(package, script, message) -> None:
    done = run_without({package}, script)
    assert done.stderr.splitlines()[-1] == f"cirrus_client.errors.MissingPackage: {message}"


def test_a_package_of_another_version_is_not_told_as_one_that_is_missing(tmp_path, monkeypatch) -> None:
    (tmp_path / "skia.py").write_text("import skia.new")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "skia", raising=False)
    with pytest.raises(MissingPackage, match=r"needs skia, which can't be imported \(No module named 'skia\.new'"):
        need("skia", "the demo")


def test_a_package_of_no_extra_keeps_its_own_error() -> None:
    with pytest.raises(ModuleNotFoundError, match="nowhere"):
        need("nowhere", "search")


def test_what_onnxruntime_prints_of_missing_cuda_libraries_is_logged(monkeypatch, capsys, caplog) -> None:
    """The CPU build stands for one on a machine without the libraries, as far as its own functions are asked."""
    onnxruntime = pytest.importorskip("onnxruntime")
    from cirrus_client.engines import onnx_runtime

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: print("Failed to load libcudart.so.13"))
    onnx_runtime._onnxruntime.cache_clear()
    try:
        assert onnx_runtime.available_providers()[0] == "CUDAExecutionProvider"
    finally:
        onnx_runtime._onnxruntime.cache_clear()
    assert capsys.readouterr().out == ""
    assert "ONNX Runtime on CUDA: Failed to load libcudart.so.13" in caplog.text
