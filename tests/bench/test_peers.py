"""Peers: a real one on the bench's weights, one that does not install, one that dies."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import cirrus_export.backbones.torchvision_cpu  # noqa: F401  isort: skip
from transformers import CLIPModel

from cirrus_bench.errors import PeerError
from cirrus_bench.peers import PEERS, Peer, start_peers
from cirrus_bench.peers.install import install
from cirrus_bench.peers.process import PeerProcess
from cirrus_bench.subjects import bench_photos
from cirrus_client.image.preprocess import preprocess
from cirrus_export.pipeline import ExportRequest, build_recipe


@pytest.mark.export
def test_a_peer_embeds_the_same_files_with_the_same_weights(tmp_path: Path) -> None:
    request = ExportRequest(
        recipe="transagg-union",
        backbone="ViT-B-32-quickgelu",
        pretrained="random",
        head="random",
        out=tmp_path / "none",
    )
    recipe = build_recipe(request)
    photos = bench_photos(tmp_path, count=5, size_px=300)
    running, missing = start_peers(tmp_path, recipe, photos, [PEERS[0], Peer("no such tool")])
    assert set(missing) == {"no such tool"}
    spec = recipe.preprocess(recipe.backbone.preprocess)
    with running[0] as peer:
        assert peer.title.startswith("open_clip ")
        peer.run()
        peer.run()
        found = peer.embeddings()
        assert peer.peak_bytes > 2**28
    pixels = torch.from_numpy(np.stack([preprocess(path.read_bytes(), spec) for path in photos]))
    with torch.no_grad():
        plain = recipe.backbone.clip.encode_image(pixels)
        theirs = CLIPModel.from_pretrained(tmp_path / "weights" / "transformers").get_image_features(
            pixel_values=pixels
        )
    np.testing.assert_allclose(found, plain.numpy(), atol=1e-4)
    converted = theirs if isinstance(theirs, torch.Tensor) else theirs.pooler_output
    np.testing.assert_allclose(converted.numpy(), plain.numpy(), atol=1e-4)


@pytest.mark.install
def test_a_peer_that_does_not_install_says_why(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(PeerError, match="odd-tool does not install: ERROR: No matching distribution"):
        install(Peer("odd-tool", ("no-such-package==1",)), tmp_path)
    assert not (tmp_path / "odd-tool" / "requirements.sha256").exists()


def test_a_driver_that_dies_is_told_with_its_last_words(tmp_path: Path) -> None:
    (tmp_path / "dying.py").write_text(
        "import sys\n"
        "print('progress without an end', end='')\n"
        'print(\'\\ncirrus:{"version": "1"}\', flush=True)\n'
        "sys.stdin.readline()\n"
        "sys.exit('the photos are too beautiful')\n"
    )

    class Dying(Peer):
        driver = tmp_path / "dying.py"

    with PeerProcess(Dying("dying"), Path(sys.executable), tmp_path, tmp_path) as peer:
        assert peer.title == "dying 1"
        with pytest.raises(PeerError, match="the last it said: the photos are too beautiful"):
            peer.run()
