"""What is seen from outside: metrics, JSON logs, traces."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import grpc
import pytest
from prometheus_client.parser import text_string_to_metric_families

from cirrus_client.errors import CirrusError
from cirrus_client.service.tracing import OpenTelemetry, PassOn
from cirrus_client.triton.encoder import AsyncTritonEncoder
from cirrus_client.triton.requests import RetryPolicy
from cirrus_client.triton.trace import TRACEPARENT
from tests.service.live import PATIENCE_S, live

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
_METRIC = re.compile(r"\bcirrus_[a-z_]+")
PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def samples(client) -> dict[tuple[str, tuple[str, ...]], float]:
    text = client.get("/metrics").text
    return {
        (sample.name, tuple(value for key, value in sorted(sample.labels.items()) if key != "le")): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_metrics_count_searches_by_outcome_and_time_by_step(serve) -> None:
    client = serve()
    client.post("/v1/search", json={"queries": [{"id": "000001.jpg"}] * 3})
    client.post("/v1/search", json={"queries": [{"image": "AAAA"}]})
    client.post("/v1/search", json={})
    client.get("/v1/items/000001.jpg")
    found = samples(client)
    assert found["cirrus_search_requests_total", ("ok",)] == 1
    assert found["cirrus_search_requests_total", ("InvalidImage",)] == 1
    assert found["cirrus_search_requests_total", ("InvalidRequest",)] == 1
    assert found["cirrus_rejected_inputs_total", ("InvalidImage",)] == 1
    for step in ("decode", "queue", "encode", "index", "metadata", "total"):
        assert found["cirrus_search_duration_seconds_count", (step,)] == 1
    assert found["cirrus_graph_duration_seconds_count", ("vision_encoder",)] >= 1
    assert found["cirrus_batch_size_sum", ()] == 3
    assert found["cirrus_http_requests_total", ("POST", "/v1/search", "422")] == 2
    assert found["cirrus_http_requests_total", ("GET", "/v1/items/{id}", "200")] == 1
    images = {labels: value for (name, labels), value in found.items() if name == "cirrus_index_images"}
    assert {labels[0]: value for labels, value in images.items()} == {"pictures": 60, "texts": 60}
    cosines = [value for (name, _), value in found.items() if name == "cirrus_canary_cosine"]
    assert len(cosines) == 2
    assert min(cosines) > 0.99999
    assert min(value for (name, _), value in found.items() if name.startswith("cirrus_index_built")) > 1.6e9


def test_what_a_caller_invents_is_no_label_and_no_line(serve, caplog) -> None:
    client = serve()
    for number in range(3):
        client.request(f"INVENTED{number}", "/healthz")
    assert samples(client)["cirrus_http_requests_total", ("other", "/healthz", "405")] == 3
    assert "INVENTED" not in client.get("/metrics").text
    with caplog.at_level(logging.INFO):
        client.get("/é%0D%0AGET /forged 200%1B[2K%E2%80%A8x")
    assert r"GET /é\r\nGET /forged 200\x1b[2K\u2028x 404" in caplog.messages


def test_a_gallery_item_that_was_a_reference_is_not_encoded_again_and_metrics_say_so(serve) -> None:
    client = serve()

    def search(**query: str) -> dict[tuple[str, tuple[str, ...]], float]:
        before = samples(client)
        assert client.post("/v1/search", json={"queries": [query]}).status_code == 200
        after = samples(client)
        return {key: value - before.get(key, 0.0) for key, value in after.items() if value != before.get(key, 0.0)}

    runs, known = "cirrus_graph_duration_seconds_count", "cirrus_known_inputs_total"
    first = search(id="000007.jpg", text="in blue")
    assert (first[runs, ("vision_encoder",)], first[known, ("image", "false")]) == (1, 1)
    edited = search(id="000007.jpg", text="with stripes")
    assert (runs, ("vision_encoder",)) not in edited
    assert (edited[known, ("image", "true")], edited[runs, ("query_head",)]) == (1, 1)
    again = search(id="000007.jpg", text="with stripes")
    assert again[known, ("query", "true")] == 1
    assert not [key for key in again if key[0] == runs]


def test_a_warm_service_knows_its_items_before_they_are_asked_for(bundle, index_root, tmp_path) -> None:
    with live(tmp_path, bundle.root, "--index", index_root, "--in-process", "--warm") as service:
        client = service.client()
        deadline = time.monotonic() + PATIENCE_S
        while samples(client).get(("cirrus_graph_duration_seconds_count", ("vision_encoder",)), 0) < 60:
            assert time.monotonic() < deadline, service.log.read_text()
            time.sleep(0.1)
        assert client.post("/v1/search", json={"queries": [{"id": "000059.jpg", "text": "in blue"}]}).status_code == 200
        found = samples(client)
    assert found["cirrus_known_inputs_total", ("image", "true")] == 1
    assert ("cirrus_known_inputs_total", ("image", "false")) not in found


def test_the_log_is_one_json_object_per_line(bundle, index_root, tmp_path) -> None:
    options = ("--index", index_root, "--in-process", "--log-format", "json")
    with live(tmp_path, bundle.root, *options) as service, service.client() as client:
        body = {"queries": [{"id": "000001.jpg"}]}
        client.post("/v1/search", json=body, headers={"X-Request-ID": "mine", "traceparent": PARENT})
        client.get("/v1/items/x%0Ay%22")
    lines = [line for line in service.log.read_text().splitlines() if line.startswith("{")]
    requests = [line for line in map(json.loads, lines) if "request_id" in line]
    search = next(line for line in requests if line["request_id"] == "mine")
    assert (search["path"], search["status"], search["collection"]) == ("/v1/search", 200, bundle.spec.name)
    assert search["trace_id"] == PARENT.split("-")[1]
    assert search["encode_ms"] > 0
    assert any(line["path"] == '/v1/items/x\ny"' and line["status"] == 404 for line in requests)


@pytest.mark.parametrize("wrong", [None, "", "00-0-0-01", PARENT.upper(), "00-" + "0" * 32 + "-" + "1" * 16 + "-01"])
def test_a_trace_is_kept_and_a_wrong_one_replaced(wrong: str | None) -> None:
    kept, begun = PassOn().begin(PARENT), PassOn().begin(wrong)
    assert kept.traceparent.split("-")[1] == kept.trace_id == PARENT.split("-")[1]
    assert kept.traceparent != PARENT
    assert len(begun.trace_id) == 32 != int(begun.trace_id, 16)
    assert begun.trace_id != kept.trace_id


def test_triton_gets_the_trace_with_its_requests() -> None:
    seen: list[dict[str, str]] = []

    class Ear(grpc.GenericRpcHandler):
        def service(self, details):
            seen.append({"method": details.method, **dict(details.invocation_metadata)})

    server = grpc.server(ThreadPoolExecutor(2), handlers=(Ear(),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()

    async def ask() -> None:
        encoder = AsyncTritonEncoder(f"127.0.0.1:{port}", retry=RetryPolicy(attempts=1))
        TRACEPARENT.set(PARENT)
        from cirrus_client.bundle import Similarity, SpaceSpec
        from cirrus_client.names import EnsembleName
        from cirrus_client.triton.requests import ServedModel

        space = SpaceSpec.of({}, dim=4, vectors=1, similarity=Similarity.COSINE)
        encoder._served = ServedModel(space, 8, frozenset(EnsembleName), None)
        await encoder.encode_queries([None], ["red"])

    with pytest.raises(CirrusError):
        asyncio.run(ask())
    server.stop(None)
    (request,) = [one for one in seen if one["method"].endswith("ModelInfer")]
    assert request["traceparent"] == PARENT


def test_spans_of_a_request_and_its_stages_go_to_a_collector() -> None:
    trace_service = pytest.importorskip(
        "opentelemetry.proto.collector.trace.v1.trace_service_pb2", reason="the extra otel is not installed"
    )
    bodies: list[bytes] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *arguments: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Collector)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    tracer = OpenTelemetry(f"http://127.0.0.1:{server.server_address[1]}/v1/traces")
    span = tracer.begin(PARENT)
    passed_on = span.traceparent
    span.end("POST /v1/search", {"status": 200, "key_id": None}, {"decode": 0.25, "encode": 0.5})
    tracer.close()
    server.shutdown()
    request = trace_service.ExportTraceServiceRequest.FromString(bodies[0])
    spans = {one.name: one for one in request.resource_spans[0].scope_spans[0].spans}
    assert set(spans) == {"POST /v1/search", "decode", "encode"}
    whole = spans["POST /v1/search"]
    assert {one.trace_id.hex() for one in spans.values()} == {PARENT.split("-")[1]}
    assert whole.parent_span_id.hex() == PARENT.split("-")[2]
    assert whole.span_id.hex() == passed_on.split("-")[2] == spans["encode"].parent_span_id.hex()
    assert spans["encode"].end_time_unix_nano - spans["encode"].start_time_unix_nano == 500_000_000
    assert spans["encode"].start_time_unix_nano == spans["decode"].end_time_unix_nano


def test_the_board_and_the_alerts_ask_for_metrics_that_there_are(serve) -> None:
    client = serve()
    client.post("/v1/search", json={"queries": [{"id": "000001.jpg"}]})
    client.post("/v1/search", json={"queries": [{"image": "AAAA"}]})
    board = json.loads((ROOT / "deploy" / "grafana" / "cirrus-search.json").read_text())
    asked = {name for panel in board["panels"] for t in panel["targets"] for name in _METRIC.findall(t["expr"])}
    there = {name for name, _ in samples(client)}
    alerting = set(_METRIC.findall((ROOT / "deploy" / "prometheus" / "alerts.yml").read_text()))
    assert "cirrus_canary_passed" in alerting
    assert asked | alerting <= there, (asked | alerting) - there
    gauges = {name for name in there if not name.endswith(("_total", "_bucket", "_sum", "_count", "_created"))}
    assert gauges <= asked, gauges - asked
