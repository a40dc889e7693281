"""Triton's administration is closed to whoever has not the secret, and the clients do not need it."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tritonclient.grpc as grpcclient
import tritonclient.http as httpclient
from tritonclient.utils import InferenceServerException

from cirrus_client.errors import ServerError
from cirrus_client.names import Transport
from cirrus_client.triton.encoder import TritonEncoder
from cirrus_client.triton.server import TritonServer, free_ports
from tests.conftest import jpeg
from tests.test_command_line import message_of, run

pytestmark = pytest.mark.triton
ADMINISTRATION: dict[str, Callable[[Any], object]] = {
    "register shared memory": lambda client: client.register_system_shared_memory("mine", "/triton", 64),
    "list shared memory": lambda client: client.get_system_shared_memory_status(),
    "unregister shared memory": lambda client: client.unregister_system_shared_memory(),
    "register CUDA memory": lambda client: client.register_cuda_shared_memory("mine", b"", 0, 64),
    "list CUDA memory": lambda client: client.get_cuda_shared_memory_status(),
    "list the repository": lambda client: client.get_model_repository_index(),
    "load a model": lambda client: client.load_model("gallery"),
    "unload a model": lambda client: client.unload_model("gallery"),
    "read log settings": lambda client: client.get_log_settings(),
    "raise the log level": lambda client: client.update_log_settings({"log_verbose_level": 9}),
    "read trace settings": lambda client: client.get_trace_settings(),
    "trace": lambda client: client.update_trace_settings(settings={"trace_level": "TIMESTAMPS"}),
    "statistics": lambda client: client.get_inference_statistics(),
}


@pytest.mark.parametrize("name", ADMINISTRATION)
@pytest.mark.parametrize("module", [grpcclient, httpclient], ids=["grpc", "http"])
def test_administration_is_refused_without_the_secret(server: TritonServer, module, name: str) -> None:
    address = server.grpc_url if module is grpcclient else server.http_url
    with (
        module.InferenceServerClient(address) as client,
        pytest.raises(InferenceServerException, match=r"protocol is restricted|API is restricted"),
    ):
        ADMINISTRATION[name](client)


@pytest.mark.parametrize(
    "path",
    ["systemsharedmemory/region/x/register", "repository/index", "repository/models/gallery/load", "logging",
     "trace/setting", "models/gallery/stats", "models/gallery/trace/setting"],
)  # fmt: skip
def test_a_page_in_the_users_browser_administers_nothing(server: TritonServer, path: str) -> None:
    """A form or a script of another origin can send this request without asking first."""
    request = urllib.request.Request(
        f"http://{server.http_url}/v2/{path}",
        data=json.dumps({"key": "/x", "offset": 0, "byte_size": 8}).encode(),
        headers={"Content-Type": "text/plain", "Origin": "http://evil.example"},
    )
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request, timeout=10)
    assert refused.value.code in (403, 405)


@pytest.mark.parametrize("transport", list(Transport))
def test_the_clients_need_no_secret(server: TritonServer, transport: Transport) -> None:
    address = server.grpc_url if transport is Transport.GRPC else server.http_url
    with TritonEncoder(address, transport=transport) as encoder:
        assert encoder.encode_targets([jpeg()]).shape == (1, 64)
        assert encoder.encode_queries([jpeg()], ["in red"]).shape == (1, 64)


def test_the_owner_of_the_server_has_the_secret(server: TritonServer) -> None:
    with grpcclient.InferenceServerClient(server.grpc_url) as client:
        assert client.get_inference_statistics(headers=server.admin_headers(Transport.GRPC)).model_stats
    with httpclient.InferenceServerClient(server.http_url) as client:
        assert client.get_inference_statistics(headers=server.admin_headers(Transport.HTTP))["model_stats"]


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.org", ""])
def test_a_network_is_served_only_on_an_explicit_word(tiny_served, host: str) -> None:
    with pytest.raises(ServerError, match="--trust-network"):
        TritonServer(tiny_served.root / "triton" / "python", host=host).start()
    assert "--trust-network" in message_of(run("serve", tiny_served.root, "--host", host))


def test_a_host_without_an_ipv4_address_is_refused_before_anything_starts(tiny_served) -> None:
    with pytest.raises(ServerError, match=r"can't listen on ::1: Triton needs an IPv4 address"):
        TritonServer(tiny_served.root / "triton" / "python", host="::1").start()


def test_http_is_answered_where_the_host_is_a_name(tiny_served) -> None:
    http, grpc, metrics = free_ports(3)
    named = TritonServer(
        tiny_served.root / "triton" / "python",
        host="localhost",
        http_port=http,
        grpc_port=grpc,
        metrics_port=metrics,
    )
    with named, TritonEncoder(named.http_url, transport=Transport.HTTP) as encoder:
        assert encoder.encode_targets([jpeg()]).shape == (1, tiny_served.spec.space.dim)


def test_the_word_for_the_network_says_what_it_means() -> None:
    assert "may take this server over" in run("serve", "--help").stdout.replace("\n", " ")


def test_metrics_stay_on_loopback(server: TritonServer) -> None:
    command = Path(f"/proc/{server.pid}/cmdline").read_text().split("\0")
    assert "--metrics-address=127.0.0.1" in command
