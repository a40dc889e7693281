"""A new head takes everything but its weights from the bundle of an earlier one."""

from __future__ import annotations

import pytest

from cirrus_client.bundle import Bundle
from cirrus_client.errors import ExportError
from cirrus_export.new_head import export_head, request_like
from cirrus_export.pipeline import ExportRequest


def with_spec(bundle: Bundle, **changes: object) -> Bundle:
    return Bundle(bundle.root, bundle.spec.model_copy(update=changes))


def test_recipe_backbone_options_and_precision_are_the_base_bundles(bundle, weights, tmp_path) -> None:
    request = request_like(bundle, weights.head, tmp_path / "out")
    assert (request.recipe, request.backbone, request.precision) == ("transagg-union", "cirrus-demo", "fp32")
    assert request.pretrained == str(weights.clip.resolve())
    assert request.options == bundle.spec.options


def test_weights_that_are_a_link_keep_the_settings_beside_it(weights, tmp_path) -> None:
    link = tmp_path / "snapshot" / "model.safetensors"
    link.parent.mkdir()
    link.symlink_to(weights.clip)
    request = ExportRequest("clip", "from-checkpoint", str(link), None, tmp_path / "out")
    assert request.located_pretrained() == str(link)


def test_what_the_user_said_of_the_backbone_is_said_again(bundle, weights, tmp_path) -> None:
    options = bundle.spec.options | {"quick_gelu": True}
    request = request_like(with_spec(bundle, options=options), weights.head, tmp_path / "out")
    assert request.backbone_options().quick_gelu is True
    assert request.recipe_options() == bundle.spec.options


def test_weights_that_are_gone_are_named_before_anything_is_written(bundle, weights, tmp_path) -> None:
    gone = with_spec(bundle, pretrained=str(tmp_path / "gone.safetensors"))
    with pytest.raises(ExportError, match=r"its backbone's weights were .*gone\.safetensors, which is gone"):
        export_head(gone, weights.head, tmp_path / "out")
    assert not (tmp_path / "out").exists()
