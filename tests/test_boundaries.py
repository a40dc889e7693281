"""Arrows between the packages point one way, and the client knows nothing of torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

BLOCK_TORCH = """
import importlib.abc, sys
class Block(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.split(".")[0] in ("torch", "torchvision", "open_clip", "transformers", "cirrus_export", "cirrus_bench"):
            raise ImportError(f"{name} is blocked")
sys.meta_path.insert(0, Block())
"""


def imports_of(folder: Path) -> set[str]:
    names = set()
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                names.add(node.module.split(".")[0])
    return names


@pytest.mark.slow
def test_the_client_runs_without_torch(tiny_bundle, pictures) -> None:
    photo = sorted(pictures.iterdir())[0]
    script = BLOCK_TORCH + (
        "import cirrus_client.cli, cirrus_client.doctor, cirrus_client.triton.server\n"
        "from cirrus_client.bundle import Bundle\n"
        "from cirrus_client.encoders import LocalEncoder\n"
        f"encoder = LocalEncoder(Bundle.open({str(tiny_bundle.root)!r}))\n"
        f"print(encoder.encode_queries([{str(photo)!r}], ['in blue']).shape)\n"
        "assert 'torch' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "(1, 64)"


def test_the_client_imports_neither_export_nor_bench() -> None:
    assert imports_of(ROOT / "client").isdisjoint({"torch", "cirrus_export", "cirrus_demo", "cirrus_bench"})


def test_the_export_imports_neither_the_bench_nor_the_demo() -> None:
    assert imports_of(ROOT / "export" / "cirrus_export").isdisjoint({"cirrus_bench", "cirrus_demo"})


def test_triton_models_import_only_the_client() -> None:
    ours = {name for name in imports_of(ROOT / "triton_models") if name.startswith("cirrus") or name == "torch"}
    assert ours == {"cirrus_client"}
