"""The recipe that the README shows is exported as it stands there."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import torch

from cirrus_client.encoders import LocalEncoder
from cirrus_export.pipeline import ExportRequest, export
from cirrus_export.recipes import RECIPES

PAGE = Path(__file__).parents[2] / "README.md"


def test_the_readmes_recipe_works(weights, probe, photos, tmp_path) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len([line for line in code.splitlines() if line.strip()]) <= 30
    exec(compile(code, str(PAGE), "exec"), {"__name__": "documented"})
    try:
        torch.save({"weight": torch.randn(64, 128), "bias": torch.randn(64)}, tmp_path / "head.pt")
        request = ExportRequest(
            "combiner", "cirrus-demo", str(weights.clip), str(tmp_path / "head.pt"), tmp_path / "bundle"
        )
        encoder = LocalEncoder(export(request, probe))
    finally:
        del RECIPES["combiner"]
    red, blue = encoder.encode_queries([sorted(photos.iterdir())[0]] * 2, ["in red", "in blue"])
    assert not np.allclose(red, blue)
