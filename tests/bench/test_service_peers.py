"""The service beside other tools: each way of asking finds the images of an exact search."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tokenizers

pytest.importorskip("fastapi", reason="the service is not installed (pip install 'cirrus-cir[service]')")
pytest.importorskip("faiss", reason="FAISS is not installed (pip install 'cirrus-cir[search]')")

import faiss

from cirrus_bench.errors import PeerError
from cirrus_bench.peers.weights import write_tokenizer
from cirrus_bench.service.process import serving
from cirrus_bench.service_peers.measure import ask_singly, ask_together
from cirrus_bench.service_peers.servers import cirrus_served
from cirrus_bench.service_peers.tools import EmbeddingsAndFaiss, KnnService, Query
from cirrus_client.agreement import top
from cirrus_client.bundle import Bundle, Precision
from cirrus_client.encoders import LocalEncoder
from cirrus_client.gallery import embed_gallery, read_gallery
from cirrus_client.index import build_index
from cirrus_client.index.faiss_backend import VECTORS
from cirrus_client.triton.server import free_ports
from cirrus_export.pipeline import ExportRequest, build_recipe

import open_clip  # isort: skip  (behind cirrus_export, which lets torchvision be imported)

pytestmark = pytest.mark.slow


def test_searches_and_embeddings_over_http_find_what_an_exact_search_finds(
    tiny_zero_shot_bundle: Bundle, pictures: Path, tmp_path: Path
) -> None:
    """Cirrus's service is asked in clip-retrieval's words, and in infinity's, where an image alone is a document."""
    encoder = LocalEncoder(tiny_zero_shot_bundle)
    embed_gallery(pictures, tmp_path / "gallery", encoder)
    build_index(read_gallery(tmp_path / "gallery"), tmp_path / "index")
    searched = faiss.read_index(str(tmp_path / "index" / VECTORS))
    images, texts = [path.read_bytes() for path in sorted(pictures.iterdir())[:3]], ["in blue", "with stripes"]
    with cirrus_served(tiny_zero_shot_bundle, tmp_path / "index", tmp_path) as search:
        embeddings = EmbeddingsAndFaiss("embeddings", Precision.FP32, search.url, "/v1/embeddings", searched)
        found = ask_singly([search, embeddings], [Query(one) for one in (*images, *texts)])
        together = ask_together([search], [Query(text) for text in texts], concurrency=2, rounds=3)[search]
    by_text, vectors = encoder.encode_queries([None] * 2, texts), searched.reconstruct_n(0, searched.ntotal)
    for tool, by_image in (
        (search, encoder.encode_queries(images, [None] * 3)),
        (embeddings, encoder.encode_targets(images)),
    ):
        np.testing.assert_array_equal(found[tool].rows, top(np.concatenate([by_image, by_text]), vectors))
    assert [one.concurrency for one in together.latencies] == [2, 2, 2]
    assert together.errors == 0


def test_a_tool_that_does_not_answer_is_an_error_and_counts_as_one() -> None:
    gone = KnnService("gone", Precision.FP32, f"http://127.0.0.1:{free_ports(1)[0]}")
    assert gone(gone.body(Query("in blue")))[1] is False
    with pytest.raises(PeerError, match="gone does not answer a query"):
        gone.rows(gone.body(Query("in blue")))


def test_a_server_that_does_not_start_is_told_with_its_last_words(tmp_path: Path) -> None:
    command = ["sh", "-c", "echo starting; echo 'no such weights' >&2; exit 3"]
    with (
        pytest.raises(PeerError, match="does not start; the last it said: no such weights"),
        serving(command, "http://127.0.0.1:9/", log=tmp_path / "log"),
    ):
        pass


def test_the_tokenizer_for_other_tools_gives_open_clips_ids(weights, tmp_path) -> None:
    recipe = build_recipe(ExportRequest("clip", "cirrus-demo", str(weights.clip), None, tmp_path))
    write_tokenizer(recipe.backbone, recipe.prompt, tmp_path)
    tokenizer = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    names = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert {tokenizer.token_to_id(names[f"{kind}_token"]) for kind in ("bos", "eos", "unk", "pad")} == {49406, 49407}
    for text in ("a red dress, in Blue", "  it's\n50% LONGER ", ""):
        ids = tokenizer.encode(text).ids
        assert ids == open_clip.tokenize(text)[0, : len(ids)].tolist()
        assert ids[-1] == 49407
