"""Checkpoints are read as their authors saved them, and a key out of place is an error that names it."""

from __future__ import annotations

import argparse
import math
import pathlib
import pickle
import sys
import types
from collections import OrderedDict
from dataclasses import replace
from pathlib import PosixPath

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from cirrus_client.errors import CheckpointError, ExportError, PluginError
from cirrus_export.backbones.registry import load_backbone
from cirrus_export.checkpoints.state import count_layers, fingerprint, load_strictly, read_state_dict
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


def with_prefix(prefix: str, state) -> dict[str, torch.Tensor]:
    return {f"{prefix}{key}": value for key, value in state.items()}


def without_tensors_names(state, start: str, inner: str) -> dict[str, torch.Tensor]:
    return {f"{start}{inner}.{key.removeprefix(start)}" if key.startswith(start) else key: state[key] for key in state}


WRAPPED = {
    "DataParallel": lambda state: with_prefix("module.", state),
    "torch.compile": lambda state: with_prefix("_orig_mod.", state),
    "DataParallel of a compiled model": lambda state: with_prefix("module._orig_mod.", state),
    "a compiled DataParallel": lambda state: with_prefix("_orig_mod.module.", state),
    "one compiled part": lambda state: without_tensors_names(state, "fusion.", "_orig_mod"),
    "Lightning": lambda state: {
        "state_dict": with_prefix("model.", state),
        "epoch": 3,
        "hyper_parameters": {"lr": 1e-4},
    },
    "Lightning, another attribute": lambda state: {"state_dict": with_prefix("net.", state)},
    "Lightning, compiled": lambda state: {"state_dict": with_prefix("model._orig_mod.", state)},
    "an average of torch": lambda state: {"n_averaged": torch.tensor(7), **with_prefix("module.", state)},
    "an epoch among the tensors": lambda state: {**state, "epoch": 3},
    "an epoch among an entry's tensors": lambda state: {"model": {**state, "epoch": 3}},
    "scalar tensors beside": lambda state: {"epoch": torch.tensor(3), "weights": state, "rng_state": torch.zeros(5)},
    "parameters": lambda state: {key: torch.nn.Parameter(value) for key, value in state.items()},
    "bfloat16": lambda state: {key: value.bfloat16() for key, value in state.items()},
    "half": lambda state: {key: value.half() for key, value in state.items()},
    "double": lambda state: {key: value.double() for key, value in state.items()},
    "fp8": lambda state: {key: value.to(torch.float8_e4m3fn) for key, value in state.items()},
}


def test_weights_deeper_in_an_entry_are_not_dropped_without_a_word(tmp_path) -> None:
    torch.save({"model": {"weight": torch.ones(2), "inner": {"weight": torch.ones(2)}}}, tmp_path / "deep.pt")
    with pytest.raises(CheckpointError, match=r"deep\.pt: expected one state dict, found none under model"):
        read_state_dict(tmp_path / "deep.pt")


@pytest.mark.parametrize(
    ("numbers", "layers"), [((0, 1, 2), 3), ((0, 2), 3), ((0, 1, 99_999), 2), ((0, 1, 9_999_999), 2), ((70, 80), 2)]
)
def test_a_number_far_beyond_the_layers_is_no_layer(numbers, layers) -> None:
    """A model of a hundred thousand layers would be built before the missing ones were found."""
    assert count_layers([f"layers.{number}.weight" for number in numbers], r"layers\.(\d+)\.") == layers


def test_an_average_of_no_tensor_is_refused(tmp_path) -> None:
    torch.save({"n_averaged": torch.tensor(7)}, tmp_path / "average.pt")
    with pytest.raises(CheckpointError, match=r"average\.pt: holds no tensor of a model"):
        read_state_dict(tmp_path / "average.pt")


@pytest.mark.parametrize("wrapping", WRAPPED)
def test_what_trainers_put_around_a_head_makes_no_difference(wrapping, head_state, tmp_path) -> None:
    found = read_state_dict(saved(tmp_path, WRAPPED[wrapping](head_state)))
    assert found.keys() == head_state.keys()
    for key, value in head_state.items():
        assert found[key].dtype is torch.float32
        torch.testing.assert_close(found[key], value.float(), rtol=0.1, atol=0.02)


def test_a_file_is_read_as_what_it_is_whatever_it_is_called(weights, head_state, tmp_path) -> None:
    (tmp_path / "head.pt").write_bytes(weights.head.read_bytes())
    torch.save(head_state, tmp_path / "head.safetensors")
    torch.save(head_state, tmp_path / "old.ckpt", _use_new_zipfile_serialization=False)
    for name in ("head.pt", "head.safetensors", "old.ckpt"):
        assert read_state_dict(tmp_path / name).keys() == head_state.keys()


def test_a_module_that_has_all_its_weights_under_net_is_loaded(tmp_path) -> None:
    module = torch.nn.Sequential(OrderedDict(net=torch.nn.Linear(2, 3)))
    head = read_state_dict(saved(tmp_path, module.state_dict()))
    again = torch.nn.Sequential(OrderedDict(net=torch.nn.Linear(2, 3)))
    load_strictly(again, head)
    torch.testing.assert_close(again.net.weight, module.net.weight)


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"
NO_CHECKPOINTS = {
    "a Git LFS pointer": (LFS, "is a Git LFS pointer .*git lfs pull"),
    "a web page": (b"\n<!DOCTYPE html><html></html>", "is a web page"),
    "an error in XML": (b'<?xml version="1.0"?><Error/>', "is a web page"),
    "an error in JSON": (b'{"error": "not found"}', "is JSON, not weights"),
    "nothing": (b"", r"is empty \(0 bytes\)"),
    "gzip": (b"\x1f\x8b\x08\x00", "is a gzip archive"),
    "a picture": (b"\xff\xd8\xff\xe0" + bytes(60), "is no checkpoint: expected .* begins with"),
    "half a pickle": (b"\x80\x02}q\x00(X", "is cut or broken"),
}


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("kind", NO_CHECKPOINTS)
def test_what_is_no_checkpoint_is_named(kind, suffix, tmp_path) -> None:
    content, message = NO_CHECKPOINTS[kind]
    path = tmp_path / f"head{suffix}"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=f"checkpoint {path}: {message}"):
        read_state_dict(path)


def test_a_folder_says_which_of_its_files_could_be_meant(tmp_path) -> None:
    saved(tmp_path, {"a": torch.ones(1)}, "epoch_3.pt")
    with pytest.raises(CheckpointError, match=r"is a folder; name the file in it that holds the weights: epoch_3\.pt"):
        read_state_dict(tmp_path)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("form", ["zip", "legacy", "safetensors"])
def test_a_cut_file_is_refused(form, share, weights, head_state, tmp_path) -> None:
    path = tmp_path / "head.pt"
    if form == "safetensors":
        path.write_bytes(weights.head.read_bytes())
    else:
        torch.save(head_state, path, _use_new_zipfile_serialization=form == "zip")
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(CheckpointError, match=f"checkpoint {path}: is cut or broken"):
        read_state_dict(path)


def test_a_flipped_bit_of_a_torch_file_is_refused(head_state, tmp_path) -> None:
    path = saved(tmp_path, head_state)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=f"checkpoint {path}: is cut or broken"):
        read_state_dict(path)


@pytest.mark.parametrize(("part", "value"), [("head", math.nan), ("head", -math.inf), ("backbone", math.inf)])
def test_nan_and_infinity_are_refused_by_the_tensors_name(part, value, weights, tmp_path) -> None:
    state = load_file(weights.head if part == "head" else weights.clip)
    damaged = next(key for key, tensor in state.items() if tensor.ndim == 2)
    state[damaged][0, 0] = value
    path = saved(tmp_path, state)
    changes = {} if part == "head" else {"pretrained": str(path)}
    with pytest.raises(CheckpointError, match=f"checkpoint {path}: NaN or infinity in '{damaged}'"):
        build_recipe(request(weights, path if part == "head" else weights.head, **changes))


ODD = {
    "sparse": (torch.eye(3).to_sparse(), "is sparse"),
    "complex": (torch.ones(3, dtype=torch.complex64), "is complex"),
    "absent": (torch.empty(3, 3, device="meta"), "has a shape and no values"),
    "quantised": (torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8), "is quantised"),
    "repeated": (torch.ones(1).expand(2**40), "claims 4,398,046,511,104 bytes, and the file holds 4"),
}


@pytest.mark.parametrize("kind", ODD)
def test_a_tensor_that_is_no_plain_array_is_refused_by_its_name(kind, tmp_path) -> None:
    tensor, reason = ODD[kind]
    with pytest.raises(CheckpointError, match=f"'layer.weight' {reason}"):
        read_state_dict(saved(tmp_path, {"layer.weight": tensor}))


def test_integers_are_no_weights(weights, head_state, tmp_path) -> None:
    head_state["weighted_layer.weight"] = head_state["weighted_layer.weight"].to(torch.int8)
    with pytest.raises(CheckpointError, match=r"'weighted_layer\.weight' is torch\.int8, expected torch\.float32"):
        build_recipe(request(weights, saved(tmp_path, head_state)))


def test_tensors_beside_a_state_dict_are_ambiguous(head_state, tmp_path) -> None:
    path = saved(tmp_path, {"model": head_state, "bias": torch.ones(3)})
    with pytest.raises(CheckpointError, match="found state dicts under model, and tensors beside them: bias"):
        read_state_dict(path)
    path = saved(tmp_path, head_state | without_tensors_names(head_state, "fusion.", "_orig_mod"))
    with pytest.raises(CheckpointError, match="holds some tensors both compiled and not"):
        read_state_dict(path)


def test_weights_beside_the_state_dict_that_is_read_are_said_aloud(head_state, tmp_path, caplog) -> None:
    averaged = {key: 2 * value for key, value in head_state.items()}
    content = {"ema": averaged, "model": head_state, "epoch": 3, "optimizer": {"state": {0: torch.ones(2)}}}
    found = read_state_dict(saved(tmp_path, content))
    assert all(torch.equal(found[key], value) for key, value in head_state.items())
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
        np.uint8(7),
        np.str_("cirr"),
        np.random.RandomState(0).get_state(),
        {"recall": np.array([0.5, 0.7]), "names": np.array(["a", "b"])},
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


HOSTILE = {
    "in the state dict": lambda path: torch.save({"a": _Attack()}, path),
    "beside the state dict": lambda path: torch.save({"state_dict": {"a": torch.ones(1)}, "args": _Attack()}, path),
    "deep in the optimizer": lambda path: torch.save(
        {"state_dict": {"a": torch.ones(1)}, "optimizer": {"state": {0: [_Attack()]}}}, path
    ),
    "in torch's old format": lambda path: torch.save({"a": _Attack()}, path, _use_new_zipfile_serialization=False),
    "in a plain pickle": lambda path: path.write_bytes(pickle.dumps(_Attack(), protocol=2)),
    "in a newer pickle": lambda path: path.write_bytes(pickle.dumps(_Attack(), protocol=5)),
}


@pytest.mark.parametrize("suffix", [".pt", ".safetensors", ".bin"])
@pytest.mark.parametrize("where", HOSTILE)
def test_a_file_that_would_run_code_is_refused(where, suffix, tmp_path, capsys) -> None:
    path = tmp_path / f"evil{suffix}"
    HOSTILE[where](path)
    with pytest.raises(CheckpointError, match=f"checkpoint {path}: "):
        read_state_dict(path)
    assert "code ran" not in capsys.readouterr().out


def test_a_refused_file_says_what_would_run(tmp_path) -> None:
    with pytest.raises(CheckpointError, match="would run code stored in it: it holds a print; save"):
        read_state_dict(saved(tmp_path, {"a": _Attack()}))


@pytest.mark.parametrize("beside", [np.array([_Attack()]), np.void(b"1"), np.datetime64("2026-01-01")])
def test_what_numpy_holds_is_numbers_and_text(beside, tmp_path, capsys) -> None:
    with pytest.raises(CheckpointError, match=r"would run code stored in it: it holds a (print|numpy)"):
        read_state_dict(saved(tmp_path, {"state_dict": {"a": torch.ones(1)}, "beside": beside}))
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
        ({"backbone": "ViT-Q-99"}, "there is no backbone 'ViT-Q-99'; there are ViT-"),
        ({"backbone": "~"}, "there is no backbone '~'; there are blip-base-coco, .*ViT-B-16, .*FILE.py:Class"),
        ({"backbone": "hf-hub:shop/siglip"}, "hf download shop/siglip --local-dir FOLDER, and --backbone"),
        ({"backbone": "openai/clip-vit-base-patch32"}, "hf download openai/clip-vit-base-patch32 --local-dir FOLDER"),
        ({"pretrained": "hf-hub:shop/siglip"}, "no tags to fetch; a repository .* hf download shop/siglip --local-dir"),
        ({"backbone": "from-checkpoint", "pretrained": "shop/clip"}, "there is no shop/clip; .* hf download shop/clip"),
        ({"pretrained": "nope"}, "there is no such file, and cirrus-demo has no tags to fetch$"),
        ({"backbone": "ViT-B-32", "pretrained": "nope"}, "neither a file nor a tag of ViT-B-32; its tags: openai, "),
        ({"head": None}, "needs --head"),
        ({"options": {"pad_mask": "soft"}}, "option 'pad_mask'"),
        ({"options": {"pad": "bool"}}, "transagg-union: option 'pad': there is no such option"),
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
