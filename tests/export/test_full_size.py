"""The published architectures at full size, with random weights: built, exported, verified."""

from __future__ import annotations

import pytest

from cirrus_export.pipeline import ExportRequest, export

BACKBONES = ["ViT-B-32", "ViT-B-32-quickgelu", "ViT-B-16", "ViT-L-14", "ViT-L-14-quickgelu"]


@pytest.mark.full_size
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("backbone", BACKBONES)
def test_a_full_size_backbone_exports_and_passes_its_gate(backbone, tmp_path) -> None:
    from cirrus_export.demo.probe import rendered_probe

    request = ExportRequest("transagg-union", backbone, "random", "random", tmp_path / backbone)
    bundle = export(request, rendered_probe(queries=12, gallery=36))
    assert bundle.spec.space.dim == (768 if "L-14" in backbone else 512)
