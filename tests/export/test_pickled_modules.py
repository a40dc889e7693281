"""Modules that `torch.save` pickled with their classes are read as their state dicts, and no class is looked for."""

from __future__ import annotations

import sys
import types
import zipfile
from pathlib import Path

import pytest
import torch
from torch import nn

from cirrus_client.errors import CheckpointError
from cirrus_export.checkpoints.state import read_checkpoint, read_state_dict
from cirrus_export.pipeline import build_recipe
from tests.export.author_files import authors_file, request


class Words:
    """What an author's module keeps beside its weights, like a tokenizer."""

    def __init__(self) -> None:
        self.known = {"blue": 1}
        self.seen = [torch.ones(2)]

    def __reduce__(self):
        return print, ("code ran",)


class Inner(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.randn(3).half(), requires_grad=False)
        self.register_buffer("places", torch.arange(4))
        self.register_buffer("passing", torch.zeros(9), persistent=False)
        self.register_buffer("absent", None)
        self.norm = nn.BatchNorm1d(3)


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.words = Words()
        self.blocks = nn.ModuleList([Inner(), Inner()])
        self.first = nn.Linear(3, 4)
        self.tied = nn.Linear(3, 4, bias=False)
        self.tied.weight = self.first.weight
        self.nothing = None
        self.attention = nn.MultiheadAttention(4, 2)


@pytest.fixture
def author(monkeypatch) -> types.ModuleType:
    """The author's package, which is there while a file is saved and not while it is read."""
    package = types.ModuleType("authors_lavis")
    for kind in (Words, Inner, Model):
        monkeypatch.setattr(kind, "__module__", package.__name__)
        setattr(package, kind.__name__, kind)
    monkeypatch.setitem(sys.modules, package.__name__, package)
    return package


def save(content: object, path: Path, monkeypatch) -> Path:
    torch.save(content, path)
    monkeypatch.delitem(sys.modules, "authors_lavis")
    return path


def test_its_tensors_are_those_of_its_state_dict(author, tmp_path, monkeypatch, capsys) -> None:
    model = Model()
    expected = model.state_dict()
    found = read_checkpoint(save(model, tmp_path / "model.pt", monkeypatch))
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=0)
    assert "code ran" not in capsys.readouterr().out


def test_wrapped_ones_and_those_in_an_entry_are_read_without_their_wrappers(author, tmp_path, monkeypatch) -> None:
    model = nn.Module()
    model.module = Model()
    content = {"epoch": 3, "model": model, "optimizer": {"lr": 1.0}}
    found = read_state_dict(save(content, tmp_path / "model.pt", monkeypatch))
    assert found.keys() == Model().state_dict().keys()


def test_a_state_dict_beside_a_module_is_read_as_well(author, tmp_path, monkeypatch) -> None:
    """So that weights which nobody asked for are a warning, as beside a plain state dict."""
    model = Model()
    file = save({"model": model, "ema": model.state_dict(), "step": 3}, tmp_path / "model.pt", monkeypatch)
    found = read_checkpoint(file)
    assert found.keys() == {"model", "ema"}
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(found["ema"][name], tensor, rtol=0, atol=0)
        torch.testing.assert_close(found["model"][name], tensor, rtol=0, atol=0)


def test_an_authors_model_that_was_saved_whole_is_the_same_recipe(small_clip, tmp_path) -> None:
    """As the code of HINT and INTENT does: `torch.save(model, ...)`."""
    plain = authors_file(tmp_path, "hint")
    model = nn.Module()
    for name, value in torch.load(plain, weights_only=True).items():
        *holders, own = name.split(".")
        part = model
        for holder in holders:
            if holder not in part._modules:
                part.add_module(holder, nn.Module())
            part = part._modules[holder]
        part.register_buffer(own, value)
    torch.save(model, tmp_path / "whole.pt")
    recipes = [
        build_recipe(request(tmp_path, "hint", small_clip, head=str(file))) for file in (plain, tmp_path / "whole.pt")
    ]
    first, second = (recipe.qformer.state_dict() for recipe in recipes)
    for name, tensor in first.items():
        torch.testing.assert_close(second[name], tensor, rtol=0, atol=0)


class _Attack:
    def __reduce__(self):
        return print, ("code ran",)


@pytest.mark.parametrize("content", [_Attack(), [_Attack()], {"a": _Attack()}, {"a": torch.ones(1), "b": Words()}])
def test_what_holds_no_module_is_refused_as_before(content, tmp_path, capsys) -> None:
    torch.save(content, tmp_path / "evil.pt")
    with pytest.raises(CheckpointError, match=r"would run code stored in it: it holds a print; save"):
        read_state_dict(tmp_path / "evil.pt")
    assert "code ran" not in capsys.readouterr().out


def rewritten(path: Path, content: bytes) -> Path:
    """Return a file of torch.save with another pickle in it."""
    torch.save(Inner(), path)
    other = path.with_name("other.pt")
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(other, "w") as copy:
        for entry in source.infolist():
            own = entry.filename.endswith("data.pkl")
            copy.writestr(entry.filename, content if own else source.read(entry))
    return other


HOLDING_ITSELF = (
    b"\x80\x02cauthors\nModel\nq\x00)\x81q\x01}(X\x0b\x00\x00\x00_parametersq\x02}X\x08\x00\x00\x00_buffersq\x03}"
    b"X\x08\x00\x00\x00_modulesq\x04}X\x01\x00\x00\x00aq\x05h\x01sub."
)
BUILDING_A_CLASS = b"\x80\x02cauthors\nModel\n}X\x04\x00\x00\x00kindX\x01\x00\x00\x00xsb."
CALLING_A_TENSOR = b"\x80\x02cauthors\nModel\n)\x81)R."


@pytest.mark.parametrize("content", [HOLDING_ITSELF, BUILDING_A_CLASS, CALLING_A_TENSOR])
def test_a_pickle_that_no_torch_wrote_is_an_error(content, tmp_path) -> None:
    with pytest.raises(CheckpointError, match=r"other\.pt: "):
        read_state_dict(rewritten(tmp_path / "model.pt", content))


def test_a_parameter_that_is_no_plain_tensor_is_named(author, tmp_path, monkeypatch) -> None:
    class Sub(torch.Tensor):
        pass

    Sub.__module__ = Sub.__qualname__ = "authors_lavis"
    author.authors_lavis = Sub
    Sub.__qualname__ = "Sub"
    author.Sub = Sub
    model = nn.Module()
    model.inner = nn.Module()
    model.inner.register_buffer("odd", torch.ones(2).as_subclass(Sub))
    with pytest.raises(CheckpointError, match=r"'inner\.odd' is no plain tensor"):
        read_state_dict(save(model, tmp_path / "model.pt", monkeypatch))
