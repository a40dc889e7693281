"""Who may call the service, how much at once, and what an answer lets a browser do."""

from __future__ import annotations

import base64
import io
import logging
from pathlib import Path

import pytest
from PIL import Image

from cirrus_client.errors import ServerError, TooManyRequests
from cirrus_client.service.door import rate
from cirrus_client.service.door.gate import Access
from cirrus_client.service.door.keys import Keys, read_keys
from cirrus_client.service.door.rate import RateLimit
from cirrus_client.service.limits import Limits
from cirrus_client.service.options import ServiceOptions
from cirrus_client.service.process import run_service
from tests.service.test_search import problem

KEY, OTHER = "k" * 32, "o" * 32
QUERY = {"queries": [{"id": "000001.jpg"}]}


@pytest.fixture(scope="module")
def locked(serve):
    return serve(access=Access(Keys({"page": KEY, "shop": OTHER}), only_loopback=False))


@pytest.mark.parametrize(
    "header",
    [None, "", "Bearer", "Bearer wrong", f"Basic {KEY}", KEY, f"Bearer {KEY}x", f"Bearer {KEY[:-1]}", "Bearer \u00e9"],
)
@pytest.mark.parametrize("path", ["/v1/collections", "/v1/items/000001.jpg", "/v1/items/000001.jpg/image"])
def test_without_a_right_key_nothing_is_answered(locked, header: str | None, path: str) -> None:
    headers = {} if header is None else {"Authorization": header.encode()}
    answer = locked.get(path, headers=headers)
    assert (answer.status_code, problem(answer)["type"]) == (401, "urn:cirrus:AccessDenied")
    assert answer.headers["www-authenticate"] == "Bearer"


def test_every_endpoint_needs_a_key_but_those_that_say_whether_the_service_lives(locked) -> None:
    paths = locked.get("/openapi.json").json()["paths"]
    asked = {path: method for path, methods in paths.items() for method in methods}
    answers = {path: locked.request(method, path.replace("{", "").replace("}", "")) for path, method in asked.items()}
    opened = {path for path, answer in answers.items() if answer.status_code != 401}
    assert {"/metrics", "/metadata", "/knn-service", "/v2/embed"} <= set(paths)
    assert opened == {"/healthz", "/readyz", "/v1/session"}


def test_two_keys_at_once_are_refused(locked) -> None:
    headers = [("Authorization", f"Bearer {KEY}"), ("Authorization", f"Bearer {OTHER}")]
    assert locked.get("/v1/collections", headers=headers).status_code == 401


def test_each_key_opens_and_the_log_names_its_id_and_never_the_key(locked, caplog) -> None:
    with caplog.at_level(logging.INFO):
        for name, key in (("page", KEY), ("shop", OTHER)):
            caplog.clear()
            assert locked.post("/v1/search", json=QUERY, headers={"Authorization": f"Bearer {key}"}).status_code == 200
            fields = next(record.fields for record in caplog.records if hasattr(record, "fields"))
            assert (fields["key_id"], fields["status"]) == (name, 200)
            assert key not in caplog.text + str(fields)


def test_the_page_and_health_need_no_key_and_a_session_opens_images(locked) -> None:
    assert locked.get("/").status_code == locked.get("/healthz").status_code == 200
    assert locked.post("/v1/session", json={"key": "wrong"}).status_code == 401
    assert locked.get("/v1/items/000001.jpg/image").status_code == 401
    opened = locked.post("/v1/session", json={"key": KEY})
    assert opened.status_code == 204
    assert {"HttpOnly", "SameSite=strict"} <= set(opened.headers["set-cookie"].split("; "))
    assert "Path" not in opened.headers["set-cookie"], "other applications of the host would get the key"
    assert locked.get("/v1/items/000001.jpg/image").status_code == 200
    locked.cookies.clear()


@pytest.mark.parametrize("other", ['consent={"a":1}', "a b=1", "plain", 'a="', "a[1]=2"])
def test_a_cookie_of_another_application_does_not_hide_the_key(locked, other: str) -> None:
    """They have one host, as below /search/ of a shop: the page asked for its key again and again."""
    for cookies in (f"{other}; cirrus-key={KEY}", f"cirrus-key={KEY}; {other}"):
        assert locked.get("/v1/collections", headers={"Cookie": cookies}).status_code == 200


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("page", "line 1: expected ID=KEY"),
        ("# keys\n\npage=short", "line 3: expected ID=KEY"),
        (f"page={KEY}\npage={OTHER}", "line 2: the id page is there twice"),
        ("# none yet\n", "it has no key; expected ID=KEY"),
    ],
)
def test_a_wrong_file_of_keys_is_an_error_that_names_the_line(tmp_path: Path, lines: str, message: str) -> None:
    (tmp_path / "keys").write_text(lines)
    with pytest.raises(ServerError, match=message) as refused:
        read_keys(tmp_path / "keys", None)
    assert KEY not in str(refused.value)


def test_keys_come_from_a_file_and_the_environment(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text(f"# of the page\npage={KEY}\n")
    keys = read_keys(tmp_path / "keys", f"shop={OTHER}")
    assert [keys.id_of(key) for key in (KEY, OTHER, "")] == ["page", "shop", None]


def test_beyond_loopback_needs_keys_or_insecure() -> None:
    with pytest.raises(ServerError, match="without API keys"):
        run_service(ServiceOptions({}, host="0.0.0.0", port=0))


@pytest.mark.parametrize(("host", "port"), [("127.0.0.1", 65536), ("nowhere.invalid", 8080)])
def test_an_address_that_nobody_can_listen_on_is_an_error_with_the_way_out(host: str, port: int) -> None:
    with pytest.raises(ServerError, match=f"can't listen on {host}:{port}: .*choose another host or port"):
        run_service(ServiceOptions({}, host=host, port=port, insecure=True))


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8080", "127.0.0.1.evil.example", "[", "192.168.0.1"])
def test_a_page_whose_name_points_here_is_refused(client, host: str) -> None:
    assert client.get("/v1/collections", headers={"Host": host}).status_code == 403


@pytest.mark.parametrize("host", ["localhost:8080", "127.0.0.1", "127.0.0.2:8080", "[::1]:8080"])
def test_this_machine_is_not(client, host: str) -> None:
    assert client.get("/v1/collections", headers={"Host": host}).status_code == 200


def test_pages_elsewhere_may_not_call_unless_they_are_listed(client, serve) -> None:
    elsewhere = {"Origin": "https://shop.example"}
    assert client.post("/v1/search", json=QUERY, headers=elsewhere).status_code == 403
    assert client.post("/v1/search", json=QUERY, headers={"Origin": "http://localhost"}).status_code == 200
    assert "access-control-allow-origin" not in client.get("/healthz").headers
    listed = serve(access=Access(origins=("https://shop.example",)))
    assert listed.post("/v1/search", json=QUERY, headers={"Origin": "https://evil.example"}).status_code == 403
    answer = listed.post("/v1/search", json=QUERY, headers=elsewhere)
    assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, "https://shop.example")


@pytest.mark.parametrize(
    "origin",
    ["*", "shop.example", "https://shop.example/", "https://Shop.example", "https://shop.example:443", "https://a:x"],
)
def test_an_origin_that_no_browser_sends_is_refused_at_the_start(origin: str) -> None:
    with pytest.raises(ServerError, match="expected an origin as browsers send it"):
        run_service(ServiceOptions({}, origins=("https://shop.example:8443", origin)))


@pytest.mark.parametrize("host", ["https://cdn.example", "cdn.example/images", "cdn.example:x", "", "me@cdn.example"])
def test_a_host_of_images_that_is_none_is_refused_at_the_start(host: str) -> None:
    with pytest.raises(ServerError, match="expected a host, or host:port"):
        run_service(ServiceOptions({}, image_hosts=("cdn.example", "[::1]:8080", host)))


@pytest.mark.parametrize("endpoint", ["collector:4318", "http://collector:4318", "ftp://collector/v1/traces"])
def test_a_collector_that_takes_no_traces_is_refused_at_the_start(endpoint: str) -> None:
    with pytest.raises(ServerError, match="like http://localhost:4318/v1/traces"):
        run_service(ServiceOptions({}, otlp_endpoint=endpoint))


def test_a_large_body_many_pixels_and_a_long_text_are_refused_by_their_limits(serve, photo) -> None:
    width, height = Image.open(io.BytesIO(photo)).size
    small = serve(limits=Limits(max_body_bytes=4_000, max_pixels=width * height - 1))
    large = problem(small.post("/v1/search", content=b"x" * 5_000))
    assert (large["type"], large["limit"], large["allowed"]) == ("urn:cirrus:LimitExceeded", "max_body_bytes", 4_000)
    streamed = small.post("/v1/search", content=(b"x" * 1_000 for _ in range(10)))
    assert problem(streamed)["status"] == 413
    image = base64.b64encode(photo).decode()
    assert len(image) < 3_900
    pixels = problem(small.post("/v1/search", json={"queries": [{"image": image}]}))
    assert f"pixels, the service takes {width * height - 1:,}" in pixels["detail"]
    text = problem(small.post("/v1/search", json={"queries": [{"id": "000001.jpg", "text": "a" * 2_001}]}))
    assert text["field"] == "queries.0.text"


def test_a_caller_that_sends_too_often_waits_and_others_do_not(monkeypatch) -> None:
    now = 0.0
    limit = RateLimit(2, clock=lambda: now)
    for _ in range(4):
        limit.take("a")
    with pytest.raises(TooManyRequests) as refused:
        limit.take("a")
    assert refused.value.retry_after_s == 1
    limit.take("b")
    now = 0.5
    limit.take("a")
    with pytest.raises(TooManyRequests):
        limit.take("a")
    monkeypatch.setattr(rate, "_MOST_CALLERS", 1)  # the others are forgotten
    now = 1_000.0
    for caller in ("a", "c"):
        for _ in range(4):
            limit.take(caller)
        with pytest.raises(TooManyRequests):
            limit.take(caller)


def test_the_rate_of_a_key_is_limited_over_http(serve) -> None:
    limited = serve(limits=Limits(rate=0.5), access=Access(Keys({"a": KEY, "b": OTHER})))
    answers = [limited.get("/v1/collections", headers={"Authorization": f"Bearer {key}"}) for key in (KEY, KEY, OTHER)]
    assert [answer.status_code for answer in answers] == [200, 429, 200]
    assert int(answers[1].headers["retry-after"]) >= 1
    pictures = [limited.get("/v1/items/1/image", headers={"Authorization": f"Bearer {KEY}"}) for _ in range(3)]
    assert [picture.status_code for picture in pictures] == [404] * 3, "a page loads dozens at once"
    assert limited.get("/healthz").status_code == 200


@pytest.mark.parametrize("path", ["/", "/v1/collections", "/nowhere", "/v1/items/000001.jpg/image"])
def test_every_answer_forbids_what_is_from_elsewhere(client, path: str) -> None:
    headers = client.get(path).headers
    policy = dict(part.split(" ", 1) for part in headers["content-security-policy"].split("; "))
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert policy["frame-ancestors"] == "'none'"
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["cache-control"] == ("private, max-age=3600" if path.endswith("/image") else "no-cache")


def test_a_request_keeps_its_own_id_if_it_is_a_plain_one(client) -> None:
    assert client.get("/healthz", headers={"X-Request-ID": "abc-1"}).headers["x-request-id"] == "abc-1"
    made = client.get("/nowhere", headers={"X-Request-ID": "a b\tc"})
    assert made.json()["request_id"] == made.headers["x-request-id"] != "a b\tc"


PATHS = [
    "../index.json",
    "..%2Findex.json",
    "%2e%2e%2f%2e%2e%2fetc%2fpasswd",
    "%2Fetc%2Fpasswd",
    "a%00b.jpg",
    "000001.jpg%2F..%2F..%2F000001.jpg",
    "....//000001.jpg",
    "%ff%fe.jpg",
    "C:%5Cwindows",
    ".",
    "%2e",
]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("suffix", ["", "/image", "/image?size=64"])
def test_an_id_that_is_no_items_reaches_no_file(client, path: str, suffix: str) -> None:
    answer = client.get(f"/v1/items/{path}{suffix}")
    assert answer.status_code == 404, answer.text[:200]
    problem(answer)


def test_an_item_whose_path_leaves_the_gallerys_folder_is_not_read(
    serve, gallery_root, tmp_path: Path, pictures: Path
) -> None:
    from cirrus_client.gallery import read_gallery
    from cirrus_client.index import build_index

    folder = tmp_path / "pictures"
    folder.mkdir()
    secret = tmp_path / "secret.jpg"
    secret.write_bytes((pictures / "000001.jpg").read_bytes())
    (folder / "000001.jpg").symlink_to(secret)
    (folder / "000002.jpg").symlink_to(folder / "000002.jpg")
    (folder / "000003.jpg").write_bytes(b"no image")
    (folder / "000004.jpg").mkdir()
    build_index(read_gallery(gallery_root), tmp_path / "index", images=str(folder))
    elsewhere = serve(index=tmp_path / "index")
    for name in ("000001", "000002", "000003", "000004", "000005"):
        answer = elsewhere.get(f"/v1/items/{name}.jpg/image")
        assert (answer.status_code, problem(answer)["type"]) == (404, "urn:cirrus:UnknownItem")
        searched = elsewhere.post("/v1/search", json={"queries": [{"id": f"{name}.jpg"}]})
        assert searched.status_code in (404, 422), searched.text
        assert str(tmp_path) not in answer.text + searched.text
