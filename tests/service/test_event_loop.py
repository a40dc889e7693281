"""What takes its time is done in threads, so that one request keeps no other waiting."""

from __future__ import annotations

import base64
import threading
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import pytest

from cirrus_client.index.parquet_items import ParquetItems
from cirrus_client.service import embedding
from cirrus_client.service.images import GalleryImages
from cirrus_client.tokenizer import Tokenizer

Called = dict[str, set[str]]


@pytest.fixture
def called(client, monkeypatch) -> Called:
    """The names of the threads in which functions that take their time are called; "loop" is the event loop's."""
    loop, found = client.portal.call(threading.get_ident), defaultdict(set)

    def noted(owner: Any, name: str) -> None:
        really: Callable[..., Any] = getattr(owner, name)

        def call(*arguments: Any, **options: Any) -> Any:
            thread = threading.current_thread()
            found[name].add("loop" if thread.ident == loop else thread.name.partition("_")[0])
            return really(*arguments, **options)

        monkeypatch.setattr(owner, name, call)

    noted(ParquetItems, "find")
    noted(ParquetItems, "same_bytes")
    noted(GalleryImages, "file")
    noted(Tokenizer, "__call__")
    noted(embedding, "check_pixels")
    return found


def test_items_are_found_and_texts_and_images_looked_at_in_threads(client, called: Called, photo) -> None:
    """To find an item reads every path of the index, and asks a server where Milvus has it."""
    coded = base64.b64encode(photo).decode()
    answers = [
        client.post("/v1/search", json={"queries": [{"id": "000001.jpg", "text": "red"}, {"image": coded}]}),
        client.post("/v1/embeddings", json={"input": [{"image": coded, "text": "red"}]}),
        client.post("/v2/embed", json={"images": [f"data:image/jpeg;base64,{coded}"], "input_type": "search_query"}),
    ]
    assert [answer.status_code for answer in answers] == [200, 200, 200]
    assert {"find", "same_bytes", "__call__", "check_pixels"} <= set(called)
    assert "loop" not in set().union(*called.values())


def test_thumbnails_of_clip_retrieval_have_threads_of_their_own(client, called: Called, photo) -> None:
    """A hundred of them were made by the threads that search."""
    answer = client.post("/knn-service", json={"image": base64.b64encode(photo).decode(), "num_images": 5})
    assert all(item["image"] for item in answer.json())
    assert called["file"] == {"pictures"}
