"""`cirrus doctor` starts whatever is missing or broken, and says what to do."""

from __future__ import annotations

import subprocess
import sys

import pytest

from cirrus_client.doctor import State, examine
from cirrus_client.extras import REQUIREMENTS
from tests.test_optional_packages import run_without

pytestmark = pytest.mark.slow

DOCTOR = "import sys; sys.argv[1:] = ['doctor']; from cirrus_client.cli import main; main()"
BREAK = """
import importlib.util, sys
class Broken:
    def find_spec(self, name, path=None, target=None):
        return importlib.util.spec_from_loader(name, self) if name == {broken!r} else None
    def create_module(self, spec):
        return None
    def exec_module(self, module):
        raise {error}
sys.meta_path.insert(0, Broken())
"""


def test_what_works_here_is_ok_and_nothing_is_broken() -> None:
    findings = {finding.what: finding for finding in examine()}
    assert findings["light client"].state is State.OK
    assert "pyarrow" in findings["light client"].found
    assert all(finding.state is not State.BROKEN for finding in findings.values())


def test_without_any_optional_package_the_light_client_is_well() -> None:
    done = run_without(set(REQUIREMENTS), DOCTOR)
    assert done.returncode == 0, done.stderr
    rows = {line.split()[1]: line for line in done.stdout.splitlines()[1:]}
    assert rows["light"].startswith("ok")
    assert "pip install 'cirrus-cir[search]'" in rows["FAISS"]
    assert "pip install 'cirrus-cir[cpu]'" in rows["ONNX"]
    assert "pip install 'cirrus-cir[serve]'" in rows["Triton"]
    assert rows["FAISS"].startswith("--")


@pytest.mark.parametrize("package", ["numpy", "pyarrow", "tritonclient", "PIL"])
def test_the_doctor_starts_without_a_package_that_all_need(package) -> None:
    done = run_without({package}, DOCTOR)
    assert done.returncode == 1, done.stderr
    assert f"No module named '{package}" in done.stdout
    assert "pip install --force-reinstall cirrus-cir" in done.stdout


@pytest.mark.parametrize(
    ("broken", "error"),
    [
        ("onnxruntime", "OSError('libcudart.so.13: cannot open shared object file')"),
        ("faiss", "ImportError('libcublas.so.12: cannot open shared object file')"),
        ("pyarrow.lib", "AttributeError('_ARRAY_API not found')"),
    ],
)
def test_a_package_that_is_installed_and_broken_is_named_with_its_reason(broken, error) -> None:
    pytest.importorskip(broken.split(".")[0])
    script = BREAK.format(broken=broken, error=error) + DOCTOR
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    (row,) = [line for line in done.stdout.splitlines() if error.split("'")[1] in line]
    assert row.startswith("!!")
    assert "pip install" in row
