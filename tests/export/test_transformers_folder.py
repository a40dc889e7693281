"""Folders of transformers with weights that are missing, left over, misshaped or broken."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import cirrus_export.backbones.torchvision_cpu  # noqa: F401  isort: skip
from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen2Model

from cirrus_client.errors import CheckpointError
from cirrus_export.checkpoints.transformers_folder import load_model

KEY = "layers.1.mlp.up_proj.weight"


@pytest.fixture
def folder(tmp_path) -> Path:
    config = Qwen2Config(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, tie_word_embeddings=False,
    )  # fmt: skip
    Qwen2ForCausalLM(config).save_pretrained(tmp_path)
    return tmp_path


def change(folder: Path, edit: Callable[[dict[str, Tensor]], object]) -> None:
    state = load_file(folder / "model.safetensors")
    edit(state)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


def test_a_whole_models_folder_is_read_without_a_word(folder, caplog, capfd) -> None:
    """Its head predicts words, which an embedder's does not need; the table of positions is a constant."""
    change(folder, lambda state: state.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)}))
    capfd.readouterr()
    model = load_model(Qwen2Model, folder, what="a Qwen2")
    assert capfd.readouterr() == ("", "")
    expected = load_file(folder / "model.safetensors")[f"model.{KEY}"]
    torch.testing.assert_close(model.get_parameter(KEY).detach(), expected, atol=0, rtol=0)
    assert not caplog.records
    assert logging.getLogger("transformers").isEnabledFor(logging.WARNING)


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (lambda state: state.pop(f"model.{KEY}"), f"key '{KEY}' is missing"),
        (lambda state: state.update({f"model.{KEY}": torch.ones(3, 3)}), rf"key '{KEY}' has shape \(3, 3\)"),
        (lambda state: state.update(custom_text_proj=torch.ones(4)), "key 'custom_text_proj' is not part of the model"),
        (lambda state: state[f"model.{KEY}"].fill_(torch.nan), f"NaN or infinity in '{KEY}'"),
    ],
    ids=["missing", "misshaped", "left over", "not finite"],
)
def test_a_weight_that_does_not_fit_is_named(edit, reason, folder) -> None:
    change(folder, edit)
    with pytest.raises(CheckpointError, match=reason):
        load_model(Qwen2Model, folder, what="a Qwen2")


def test_a_file_that_can_t_be_read_is_named(folder) -> None:
    (folder / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(CheckpointError, match="can't be read as a Qwen2"):
        load_model(Qwen2Model, folder, what="a Qwen2")
