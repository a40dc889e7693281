"""The tensors of a TorchScript archive are read, and nothing in the archive runs."""

from __future__ import annotations

import os
import pickle
import zipfile
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from cirrus_client.errors import CheckpointError
from cirrus_export.backbones.registry import load_backbone
from cirrus_export.checkpoints.state import read_state_dict
from cirrus_export.checkpoints.torchscript import read_torchscript


class Node(nn.Module):
    """A module with any parameters and children."""

    def forward(self, x: Tensor) -> Tensor:
        return x


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2).half()
        self.register_buffer("count", torch.tensor(7))
        self.register_buffer("view", torch.arange(12.0).reshape(3, 4).T[1:])
        self.attribute = torch.zeros(4)
        self.names = ["a", "b"]
        self.by_name = {"x": torch.ones(1)}
        self.tied = self.linear.weight

    def forward(self, x: Tensor) -> Tensor:
        return x + self.attribute.sum()


class RestoredByCode(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("weight", torch.ones(2))

    @torch.jit.export
    def __getstate__(self) -> tuple[Tensor, bool]:
        return (self.weight, self.training)

    @torch.jit.export
    def __setstate__(self, state: tuple[Tensor, bool]) -> None:
        print("code ran")
        self.weight = state[0]
        self.training = state[1]

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight


def saved(module: nn.Module, path: Path) -> Path:
    torch.jit.script(module).save(str(path))
    return path


def tree(state: dict[str, Tensor]) -> Node:
    """Return a module whose state dict is this one, as buffers."""
    root = Node()
    for key, tensor in state.items():
        *parents, name = key.split(".")
        module = root
        for parent in parents:
            if not hasattr(module, parent):
                module.add_module(parent, Node())
            module = getattr(module, parent)
        module.register_buffer(name, tensor)
    return root


def test_an_archives_tensors_are_those_that_torch_itself_reads(tmp_path: Path) -> None:
    path = saved(nn.Sequential(Layer(), nn.Sequential(Layer(), nn.LayerNorm(4))), tmp_path / "model.pt")
    expected = torch.jit.load(path).state_dict()
    found = read_torchscript(path)
    assert list(found) == list(expected)
    for key, tensor in expected.items():
        assert found[key].dtype == tensor.dtype
        torch.testing.assert_close(found[key], tensor, rtol=0, atol=0)


def test_openais_archive_is_its_model_with_quick_gelu(small_clip: Path, tmp_path: Path) -> None:
    state = torch.load(small_clip, weights_only=True)
    sizes = {
        "input_resolution": torch.tensor(32),
        "context_length": torch.tensor(77),
        "vocab_size": torch.tensor(49408),
    }
    path = saved(tree({key: tensor.half() for key, tensor in state.items()} | sizes), tmp_path / "ViT.pt")
    clip = load_backbone("from-checkpoint", str(path)).clip
    assert "QuickGELU" in str(clip)
    for key, tensor in state.items():
        torch.testing.assert_close(clip.state_dict()[key], tensor.half().float(), rtol=0, atol=0)


def test_a_modules_own_code_does_not_run(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = saved(nn.Sequential(nn.LayerNorm(2), RestoredByCode()), tmp_path / "model.pt")
    torch.jit.load(path)
    assert "code ran" in capfd.readouterr().out, "torch runs it"
    with pytest.raises(CheckpointError, match="RestoredByCode restores itself by a __setstate__ in the archive"):
        read_state_dict(path)
    assert "code ran" not in capfd.readouterr().out


def with_pickle(path: Path, content: bytes, out: Path) -> Path:
    """Return a copy of an archive with another `data.pkl`."""
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(out, "w") as copy:
        for entry in source.infolist():
            replaced = entry.filename.endswith("/data.pkl")
            copy.writestr(entry.filename, content if replaced else source.read(entry))
    return out


class _Call:
    def __init__(self, function: object, *arguments: object) -> None:
        self._reduced = (function, arguments)

    def __reduce__(self) -> object:
        return self._reduced


def test_a_pickle_that_calls_a_function_is_refused_with_its_name(tmp_path: Path) -> None:
    path = saved(nn.LayerNorm(2), tmp_path / "model.pt")
    marker = tmp_path / "ran"
    evil = with_pickle(path, pickle.dumps(_Call(os.mkdir, str(marker)), protocol=2), tmp_path / "evil.pt")
    with pytest.raises(CheckpointError, match=r"would run code stored in it: it holds a posix\.mkdir"):
        read_state_dict(evil)
    assert not marker.exists()


def state_of(name: bytes, value: bytes) -> bytes:
    """The opcodes of {name: value}, as a module's state."""
    return b"}(U" + bytes([len(name)]) + name + value + b"ub"


MODULE = b"c__torch__\nM\n)\x81"
HOSTILE = {
    # BUILD gives attributes to the class that stands for a tensor, which would outlive the archive
    "changes a class": b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\nN}U\x07__new__K\x01s\x86b.",
    "holds itself": b"\x80\x02" + MODULE + b"q\x00" + state_of(b"a", b"h\x00") + b".",
    "forty doublings": b"\x80\x02"
    + MODULE
    + state_of(b"a", b"N")
    + b"q\x00"
    + b"".join(
        MODULE + b"}(U\x01a" + b"h" + bytes([depth]) + b"U\x01bh" + bytes([depth]) + b"ub" + b"q" + bytes([depth + 1])
        for depth in range(40)
    )
    + b".",
    "no module": b"\x80\x02K\x01.",
    "cut": b"\x80\x02" + MODULE,
    "a storage that is not there": b"\x80\x02"
    + MODULE
    + state_of(
        b"w",
        b"ctorch._utils\n_rebuild_tensor_v2\n((U\x07storagectorch\nFloatStorage\nU\x0e../../../etc/xU\x03cpuK\x04tQ"
        b"K\x00(K\x04t(K\x01t\x89NtR",
    )
    + b".",
    "beyond its storage": b"\x80\x02"
    + MODULE
    + state_of(
        b"weight",
        b"ctorch._utils\n_rebuild_tensor_v2\n((U\x07storagectorch\nFloatStorage\nU\x010U\x03cpuK\x02tQ"
        b"K\x00(J\x00\x00\x00\x40t(K\x01t\x89NtR",
    )
    + b".",
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_archive_is_refused_and_changes_nothing(case: str, tmp_path: Path) -> None:
    path = saved(nn.LayerNorm(2), tmp_path / "model.pt")
    evil = with_pickle(path, HOSTILE[case], tmp_path / "evil.pt")
    with pytest.raises(CheckpointError, match=str(evil)):
        read_state_dict(evil)
    assert list(read_state_dict(path)) == ["weight", "bias"]


@pytest.mark.parametrize("share", [0.2, 0.6, 0.95])
def test_a_cut_archive_is_refused(share: float, tmp_path: Path) -> None:
    path = saved(nn.Sequential(*(nn.LayerNorm(64) for _ in range(4))), tmp_path / "model.pt")
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(CheckpointError, match=str(path)):
        read_state_dict(path)


def test_a_flipped_byte_is_seen(tmp_path: Path) -> None:
    path = saved(nn.LayerNorm(4096), tmp_path / "model.pt")
    content = bytearray(path.read_bytes())
    content[content.find(b"\x00\x00\x80\x3f" * 8) + 6] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="is cut or broken"):
        read_state_dict(path)


def test_a_compressed_storage_is_refused(tmp_path: Path) -> None:
    path = saved(nn.LayerNorm(2), tmp_path / "model.pt")
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as copy:
        for entry in source.infolist():
            copy.writestr(entry.filename, source.read(entry))
    with pytest.raises(CheckpointError, match="is compressed, which torch never does"):
        read_state_dict(tmp_path / "bomb.pt")
