"""Checkpoints are read as their authors saved them, and a key out of place is an error that names it."""

from __future__ import annotations

import argparse
import pathlib
import pickle
import sys
import types
from dataclasses import replace
from pathlib import PosixPath

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from cirrus_client.errors import CheckpointError, ExportError, PluginError
from cirrus_export.backbones.registry import load_backbone
from cirrus_export.checkpoints.state import fingerprint, read_state_dict
from cirrus_export.pipeline import ExportRequest, build_recipe


def request(weights, head, **changes) -> ExportRequest:
    values = {
        "recipe": "transagg-union",
        "backbone": "cirrus-demo",
        "pretrained": str(weights.clip),
        "head": str(head),
        "out": head.parent / "out",
    }
    return ExportRequest(**(values | changes))


@pytest.fixture
def head_state(weights) -> dict[str, torch.Tensor]:
    return load_file(weights.head)


def saved(tmp_path, state, name: str = "head.pt"):
    torch.save(state, tmp_path / name)
    return tmp_path / name


def test_a_torch_file_with_data_parallel_prefixes_and_half_precision_is_the_same_head(
    weights, head_state, tmp_path
) -> None:
    wrapped = {"state_dict": {f"module.{key}": value.half() for key, value in head_state.items()}}
    plain = build_recipe(request(weights, weights.head))
    again = build_recipe(request(weights, saved(tmp_path, wrapped)))
    assert fingerprint(plain.target_head) == fingerprint(again.target_head)
    assert fingerprint(plain.query_head) == fingerprint(again.query_head)


def test_weights_beside_the_state_dict_that_is_read_are_said_aloud(head_state, tmp_path, caplog) -> None:
    content = {"model": head_state, "ema": head_state, "epoch": 3, "optimizer": {"state": {0: torch.ones(2)}}}
    read_state_dict(saved(tmp_path, content))
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(warnings) == 1
    assert "'model' is read, and the weights under 'ema' are not" in warnings[0]


def test_a_missing_and_a_renamed_key_are_both_named(weights, head_state, tmp_path) -> None:
    del head_state["sep_token"]
    head_state["weighted_layr.bias"] = head_state.pop("weighted_layer.bias")
    with pytest.raises(CheckpointError) as refused:
        build_recipe(request(weights, saved(tmp_path, head_state)))
    message = str(refused.value)
    assert "'sep_token' is missing" in message
    assert "'weighted_layer.bias' is missing (nearest surplus key: 'weighted_layr.bias')" in message


def test_a_head_of_another_width_says_for_which_backbone_it_is(weights, tmp_path) -> None:
    state = {"weighted_layer.weight": torch.zeros(3, 768)}
    with pytest.raises(CheckpointError, match="looks like a head for ViT-L-14"):
        build_recipe(request(weights, saved(tmp_path, state)))


@pytest.mark.parametrize(
    "beside",
    [
        PosixPath("/data/phi_models/run"),
        pathlib.PureWindowsPath(r"C:\runs\1"),
        argparse.Namespace(lr=1e-4, out=PosixPath("out")),
        np.float64(0.5),
        np.int64(7),
    ],
)
def test_paths_numbers_and_arguments_beside_the_weights_are_data(beside, tmp_path) -> None:
    phi = {"layers.0.weight": torch.ones(2, 2)}
    content = {"epoch": 3, "Phi": phi, "optimizer": {"state": {}}, "scaler": {}, "training_path": beside}
    assert read_state_dict(saved(tmp_path, content)).keys() == phi.keys()


@pytest.mark.parametrize("module", ["pathlib", "pathlib._local"])
@pytest.mark.parametrize("kind", ["PosixPath", "WindowsPath"])
def test_a_path_of_any_system_and_python_is_read(module, kind, tmp_path) -> None:
    class Path(str):
        def __reduce__(self):
            return (type(self), ("run",))

    Path.__module__, Path.__qualname__, Path.__name__ = module, kind, kind
    names = types.ModuleType(module)
    setattr(names, kind, Path)
    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(sys.modules, module, names)
        path = saved(tmp_path, {"Phi": {"a": torch.ones(1)}, "training_path": Path("run")})
    assert read_state_dict(path).keys() == {"a"}


class _Attack:
    def __reduce__(self):
        return (print, ("code ran",))


def test_a_file_that_would_run_code_is_refused(weights, tmp_path, capsys) -> None:
    path = tmp_path / "evil.pt"
    torch.save({"a": _Attack()}, path, pickle_module=pickle)
    with pytest.raises(CheckpointError, match="would run code stored in it: it holds a print; save"):
        read_state_dict(path)
    assert "code ran" not in capsys.readouterr().out


def test_the_backbone_inside_a_unions_file_wins_and_is_quick_gelu(weights, head_state, tmp_path) -> None:
    torch.manual_seed(3)
    tuned = load_backbone("cirrus-demo", "random").clip.state_dict()
    state = head_state | {f"model.{key}": value for key, value in tuned.items()}
    recipe = build_recipe(request(weights, saved(tmp_path, state)))
    assert torch.equal(recipe.backbone.clip.visual.proj, tuned["visual.proj"])
    assert "QuickGELU" in str(recipe.backbone.clip.visual)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"recipe": "nope"}, "there is no recipe 'nope'"),
        ({"backbone": "ViT-Q-99"}, "there is no backbone 'ViT-Q-99'"),
        ({"pretrained": "nope"}, "there is no such file, and cirrus-demo has no tags"),
        ({"backbone": "ViT-B-32", "pretrained": "nope"}, "neither a file nor a tag of ViT-B-32; its tags: openai, "),
        ({"head": None}, "needs --head"),
        ({"options": {"pad_mask": "soft"}}, "option 'pad_mask'"),
        ({"options": {"pad": "bool"}}, "option 'pad'"),
        ({"recipe": "clip"}, "has no head"),
        ({"backbone": "ViT-H-14-quickgelu", "pretrained": "dfn5b"}, r"trained on images .* \(.* resize_mode squash\)"),
        (
            {"backbone": "ViT-B-32-SigLIP2-256", "pretrained": "webli"},
            "needs every token of an image and a text, and a pooled open_clip backbone gives one embedding per image",
        ),
        (
            {"recipe": "clip", "head": None, "backbone": "xlm-roberta-base-ViT-B-32", "pretrained": "random"},
            "its text tower is transformers' xlm-roberta-base",
        ),
    ],
)
def test_a_wrong_request_is_refused_with_what_there_is(weights, changes, reason) -> None:
    with pytest.raises((ExportError, PluginError), match=reason):
        build_recipe(replace(request(weights, weights.head), **changes))
