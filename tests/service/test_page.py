"""The page in a real browser, on a real service."""

from __future__ import annotations

import json
import re
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote, unquote

import pyarrow as pa
import pytest

from cirrus_client.bundle import Bundle
from cirrus_client.gallery import read_gallery
from cirrus_client.index import build_index
from cirrus_client.triton.server import free_ports
from tests.nginx import needs_nginx, nginx
from tests.service.live import live

sync_api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
from playwright.sync_api import Browser, BrowserContext, Page, expect  # noqa: E402

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on the path")]


DARK_PIXELS = """() => {
    const [image, canvas] = [document.getElementById("preview"), document.createElement("canvas")];
    [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
    canvas.getContext("2d").drawImage(image, 0, 0);
    const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
    return data.filter((value, place) => place % 4 === 0 && value < 100).length;
}"""


WITHOUT_SOURCES = """{
    delete JSON.rawJSON;
    const parse = JSON.parse;
    JSON.parse = (text, revive) =>
        parse(text, revive && function (name, value) { return revive.call(this, name, value); });
}"""
"""A browser without the means for integers that some have, and others not yet."""
_LARGE = 2**53


@contextmanager
def service(folder: Path, bundle: Bundle, index: Path, port: int, *options: str) -> Iterator[str]:
    """Run `cirrus serve` in a process of its own until the block ends, and yield its address."""
    with live(folder, bundle.root, "--index", index, "--in-process", *options, port=port) as running:
        yield running.url
    assert running.process.returncode == 128 + signal.SIGTERM


@pytest.fixture(scope="module")
def port() -> int:
    return free_ports(1)[0]


@pytest.fixture(scope="module")
def address(bundle, index_root, text_source, port, tmp_path_factory) -> Iterator[str]:
    options = ("--collection", f"texts={text_source.bundle},{text_source.index}")
    with service(tmp_path_factory.mktemp("page"), bundle, index_root, port, *options) as running:
        yield running


@pytest.fixture(scope="module")
def numbered(text_source, pictures, tmp_path_factory) -> Iterator[str]:
    """The address of a service whose products have numbers that a double can't tell apart."""
    folder, places = tmp_path_factory.mktemp("numbered"), range(len(list(pictures.iterdir())))
    metadata = pa.table(
        {
            "image_path": sorted(path.name for path in pictures.iterdir()),
            "sku": pa.array([_LARGE + n for n in places], pa.int64()),
            "serial": pa.array([2**64 - 1 - n for n in places], pa.uint64()),
            "parts": [[-_LARGE - n, n] for n in places],
        }
    )
    build_index(read_gallery(text_source.index.parent / "gallery"), folder / "index", metadata=metadata)
    with service(folder, Bundle.open(text_source.bundle), folder / "index", free_ports(1)[0]) as running:
        yield running


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    expect.set_options(timeout=20_000)
    with sync_api.sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield running
        running.close()


@pytest.fixture
def context(browser: Browser) -> Iterator[BrowserContext]:
    opened = browser.new_context(viewport={"width": 1200, "height": 900})
    opened.set_default_timeout(20_000)
    yield opened
    opened.close()


@pytest.fixture
def page(context: BrowserContext) -> Iterator[Page]:
    """A page of which nothing may go wrong in the browser: no exception, nothing that the policy refuses."""
    opened = context.new_page()
    defects: list[str] = []
    opened.on("pageerror", lambda error: defects.append(str(error)))
    opened.on("console", lambda message: defects.append(message.text) if "Content Security" in message.text else None)
    yield opened
    assert not defects


def found(page: Page) -> list[str]:
    """Return the ids of the shown results, after the search that is under way."""
    expect(page.locator("#notice")).to_have_text(re.compile(r"pictures? in \d+ ms"))
    return page.locator(".card a").all_inner_texts()


def search(page: Page, text: str) -> list[str]:
    page.fill("#text", text)
    with page.expect_response("**/v1/search"):
        page.click("#query button[type=submit]")
    return found(page)


def choose(page: Page, image: Path) -> list[str]:
    with page.expect_response("**/v1/search"):
        page.set_input_files("#file", image)
    return found(page)


def test_a_picture_and_an_edit_find_what_the_api_finds(page: Page, address: str, pictures: Path, client) -> None:
    page.goto(address)
    expect(page.locator("#notice")).to_have_text("Give a picture, a text, or both.")
    alone = choose(page, pictures / "000007.jpg")
    composed = search(page, "in blue, with stripes")
    assert len(composed) == 24
    assert composed != alone
    answer = client.post(
        "/v1/search",
        files={"image": (pictures / "000007.jpg").read_bytes()},
        data={"text": "in blue, with stripes", "k": "24"},
    )
    assert composed == [item["id"] for item in answer.json()["results"][0]["items"]]
    expect(page.locator(".card img").first).to_have_js_property("complete", True)
    assert page.locator(".card img").first.evaluate("image => image.naturalWidth") > 0


@needs_nginx
def test_below_a_path_of_its_host_it_finds_the_same(
    page: Page, context: BrowserContext, address: str, pictures: Path, tmp_path: Path
) -> None:
    page.goto(address)
    expected = choose(page, pictures / "000007.jpg")
    with nginx(tmp_path, "search-service.md", address.removeprefix("http://"), below="/search/") as proxy:
        page.goto(f"{proxy}/search/")
        assert choose(page, pictures / "000007.jpg") == expected
        expect(page.locator(".card img").first).not_to_have_js_property("naturalWidth", 0)
        with page.expect_response("**/v1/search"):
            page.click(".card button >> nth=2")
        found(page)
        expect(page.locator("#preview")).not_to_have_js_property("naturalWidth", 0)
        with context.expect_page() as opened:
            page.click(".card a >> nth=0")
        assert opened.value.url.startswith(f"{proxy}/search/v1/items/")
        page.reload()
        found(page)
        page.goto(address)


def test_a_result_starts_a_search_and_every_search_is_a_link(
    page: Page, context: BrowserContext, address: str, pictures: Path
) -> None:
    page.goto(address)
    first = choose(page, pictures / "000003.jpg")
    with page.expect_response("**/v1/search"):
        page.click(".card button >> nth=2")
    from_third = found(page)
    assert first[2] not in from_third
    expect(page.locator("#reference-name")).to_have_text(first[2])
    edited = search(page, "longer")
    with page.expect_response("**/v1/search"):
        page.go_back()
    assert found(page) == from_third
    with page.expect_response("**/v1/search"):
        page.go_back()
    assert found(page) == first
    with page.expect_response("**/v1/search"):
        page.reload()
    assert found(page) == first
    for _ in range(2):
        with page.expect_response("**/v1/search"):
            page.go_forward()
    assert found(page) == edited
    other = context.new_page()
    other.goto(page.url)
    assert found(other) == edited


def test_a_link_to_another_browsers_picture_says_so(page: Page, address: str) -> None:
    page.goto(f"{address}/?picture=0123456789abcdef&text=in+red")
    expect(page.locator("#problem")).to_contain_text("another browser")
    page.goto(f"{address}/?id=000005.jpg")
    found(page)
    page.evaluate("for (const link of ['?picture=0123', '?'] ) history.pushState(null, '', link); history.back()")
    expect(page.locator("#problem")).to_contain_text("another browser")
    expect(page.locator(".card")).to_have_count(0)


def test_a_sketch_is_drawn_and_searched(page: Page, address: str) -> None:
    page.goto(address)
    page.click("#draw")
    expect(page.locator("#use")).to_be_disabled()
    box = page.locator("#canvas").bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + 60, box["y"] + 60)
    page.mouse.down()
    page.mouse.move(box["x"] + 260, box["y"] + 200, steps=5)
    page.mouse.up()
    with page.expect_response("**/v1/search"):
        page.click("#use")
    assert len(found(page)) == 24
    expect(page.locator("#preview")).to_be_visible()
    dark = page.evaluate(DARK_PIXELS)
    assert 500 < dark < 5_000  # a line of 245 x 4 pixels


def test_filters_are_made_of_the_columns(page: Page, address: str, pictures: Path) -> None:
    page.goto(address)
    choose(page, pictures / "000005.jpg")
    page.click("summary")
    with page.expect_response("**/v1/search"):
        page.locator("fieldset[data-column=brand]").get_by_label("b", exact=True).check()
    found(page)
    page.fill("fieldset[data-column=price] input[name='<=']", "40")
    with page.expect_response("**/v1/search"):
        page.keyboard.press("Tab")
    found(page)
    expect(page.locator("#filter-count")).to_have_text("(2)")
    shown = page.locator(".card dl").all_inner_texts()
    assert shown
    for text in shown:
        details = dict(zip(text.split("\n")[::2], text.split("\n")[1::2], strict=True))
        assert details["brand"] == "b"
        assert float(details["price"]) <= 40
    with page.expect_response("**/v1/search"):
        page.reload()
    assert len(page.locator(".card").all()) == len(shown)
    with page.expect_response("**/v1/search"):
        page.click("#clear-filters")
    assert len(found(page)) == 24


def test_a_filter_takes_neither_the_focus_nor_a_text_that_is_not_sent_yet(
    page: Page, address: str, pictures: Path
) -> None:
    page.goto(address)
    choose(page, pictures / "000005.jpg")
    page.fill("#text", "in red")
    page.click("summary")
    page.focus("fieldset[data-column=brand] input >> nth=1")
    with page.expect_response("**/v1/search"):
        page.keyboard.press("Space")
    found(page)
    expect(page.locator("fieldset[data-column=brand] input >> nth=1")).to_be_focused()
    assert "text=in+red" in page.url
    page.focus("fieldset[data-column=price] input[name='>=']")
    page.keyboard.type("3")
    with page.expect_response("**/v1/search"):
        page.keyboard.press("Tab")
    found(page)
    expect(page.locator("fieldset[data-column=price] input[name='<=']")).to_be_focused()


def test_a_filter_that_a_link_says_is_applied(page: Page, address: str) -> None:
    for filter in ('{"column":"brand","op":"==","value":"b"}', '{"or":[{"column":"brand","op":"in","value":["b"]}]}'):
        page.goto(f"{address}/?id=000005.jpg&filter={quote(filter)}")
        found(page)
        assert all("brand\nb\n" in f"{text}\n" for text in page.locator(".card dl").all_inner_texts())
    page.goto(f"{address}/?id=000005.jpg&filter=" + quote('{"and":[5,null]}'))
    assert len(found(page)) == 24


def test_a_link_may_say_a_filter_that_no_field_shows(page: Page, address: str) -> None:
    """A value that is no text ended the page, and what must not be was shown as chosen."""
    page.goto(f"{address}/?id=000005.jpg&filter=" + quote('{"column":"brand","op":"==","value":5}'))
    expect(page.locator("#problem")).to_contain_text("can't be compared with 5")
    page.goto(f"{address}/?id=000005.jpg&filter=" + quote('{"column":"brand","op":"!=","value":"b"}'))
    found(page)
    assert not page.locator("fieldset[data-column=brand] :checked").count()


def test_integers_keep_all_their_digits_in_every_browser(page: Page, numbered: str) -> None:
    """JavaScript would make 9007199254740992 of a product's 9007199254740993, and find another one."""
    page.add_init_script(WITHOUT_SOURCES)
    page.goto(f"{numbered}/?text=in+red")
    expect(page.locator(".card")).to_have_count(24)
    page.click("summary")
    for column, value in (("sku", _LARGE + 7), ("serial", 2**64 - 8)):
        for op in (">=", "<="):
            page.fill(f"fieldset[data-column={column}] input[name='{op}']", str(value))
            with page.expect_response("**/v1/search"):
                page.keyboard.press("Tab")
        found(page)
        details = page.locator(".card dl").all_inner_texts()
        assert details == [f"sku\n{_LARGE + 7}\nserial\n{2**64 - 8}\nparts\n[{-_LARGE - 7},7]"]
        with page.expect_response("**/v1/search"):
            page.reload()
        found(page)
        assert page.locator(".card dl").all_inner_texts() == details
        assert page.locator(f"fieldset[data-column={column}] input[name='<=']").input_value() == str(value)
        with page.expect_response("**/v1/search"):
            page.click("#clear-filters")


@pytest.mark.parametrize(
    "text",
    [
        '{"a":[1,-9007199254740993,0.5,1e300,true,null],"9007199254740993":"9007199254740993"}',
        r'["\\","\"9007199254740993",18446744073709551615,{"__proto__":[9007199254740993]},{},[]]',
        "-9007199254740993",
    ],
)
def test_json_is_read_and_written_as_it_is(page: Page, address: str, text: str) -> None:
    page.goto(address)
    again = "async text => { const exact = await import('/exact.js'); return exact.stringify(exact.parse(text)); }"
    assert json.loads(page.evaluate(again, text)) == json.loads(text)


def test_more_is_shown_on_request(page: Page, address: str, pictures: Path) -> None:
    page.goto(address)
    first = choose(page, pictures / "000005.jpg")
    with page.expect_response("**/v1/search"):
        page.click("text=Show more")
    more = found(page)
    assert more[:24] == first
    assert len(more) == 48


def test_two_collections_answer_the_same_query_side_by_side(page: Page, address: str, pictures: Path) -> None:
    page.goto(address)
    choose(page, pictures / "000005.jpg")
    with page.expect_response("**/v1/search"):
        page.select_option("#compare", "texts")
    expect(page.locator("#results section")).to_have_count(2)
    page.set_viewport_size({"width": 400, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_an_item_of_the_other_collection_stays_that_item(page: Page, address: str, pictures: Path) -> None:
    """When the other one was put away, its item's id was looked for in the first one."""
    page.goto(address)
    choose(page, pictures / "000005.jpg")
    page.select_option("#compare", "texts")
    expect(page.locator("#results section")).to_have_count(2)
    with page.expect_response("**/v1/search"):
        page.click("#results section:nth-child(2) .card button >> nth=2")
    found(page)
    with page.expect_request(lambda asked: "/image?collection=texts" in asked.url and "size=" not in asked.url):
        page.select_option("#compare", "")
    found(page)


def test_a_file_that_is_changed_is_searched_as_it_was_given(
    page: Page, address: str, pictures: Path, tmp_path: Path
) -> None:
    """A browser sends no file that was changed: the service was said to be out of reach, for ever."""
    file = tmp_path / "mine.jpg"
    shutil.copy(pictures / "000005.jpg", file)
    page.goto(address)
    choose(page, file)
    shutil.copy(pictures / "000009.jpg", file)
    changed = search(page, "in red")
    page.set_input_files("#file", pictures / "000005.jpg")
    assert found(page) == changed


def test_a_text_that_an_office_program_copied_is_pasted_as_text(page: Page, address: str) -> None:
    page.goto(address)
    prevented = """() => {
        const clipboardData = new DataTransfer();
        for (const type of ["text/plain", "text/html"]) clipboardData.setData(type, "in red");
        clipboardData.items.add(new File([new Uint8Array([1])], "image.png", { type: "image/png" }));
        const event = new ClipboardEvent("paste", { clipboardData, bubbles: true, cancelable: true });
        return !document.getElementById("text").dispatchEvent(event);
    }"""
    assert not page.evaluate(prevented), "the browser pastes the text"
    assert "picture=" not in page.url


def test_a_suggestion_that_nobody_waits_for_any_more_is_no_defect(page: Page, address: str, pictures: Path) -> None:
    page.route(
        "**/v1/collections",
        lambda route: route.fulfill(body=route.fetch().body().replace(b'"suggest":false', b'"suggest":true')),
    )
    page.route("**/v1/suggest", lambda route: None)
    page.goto(address)
    choose(page, pictures / "000005.jpg")
    page.evaluate(
        """() => { globalThis.told = []; const problem = document.getElementById("problem");
        new MutationObserver(() => told.push(problem.textContent)).observe(problem, { childList: true }); }"""
    )
    page.click(".suggest >> nth=0")
    expect(page.locator("#notice")).to_contain_text("Comparing")
    search(page, "in red")
    assert not any(page.evaluate("told"))


def test_a_file_that_is_no_image_is_told_in_words(page: Page, address: str, tmp_path: Path, pictures: Path) -> None:
    (tmp_path / "notes.jpg").write_text("certainly no image")
    page.goto(address)
    page.set_input_files("#file", tmp_path / "notes.jpg")
    expect(page.locator("#problem")).to_contain_text("not an image in a known format")
    assert len(choose(page, pictures / "000001.jpg")) == 24
    expect(page.locator("#problem")).to_be_empty()


@pytest.mark.parametrize("id", ["./a.jpg", "a/../b.jpg", "/photos//a.jpg", "a b/5 %.jpg", "plain/image", "ä?#&.jpg"])
def test_an_items_image_has_an_address_that_the_browser_leaves_as_it_is(page: Page, address: str, id: str) -> None:
    page.goto(address)
    seen = "async id => new URL((await import('/api.js')).imageOf(id, 'a collection'), location.href).pathname"
    assert unquote(page.evaluate(seen, id)) == f"/v1/items/{id}/image"


def test_a_service_that_goes_away_and_comes_back_is_searched_again(
    page: Page, bundle: Bundle, index_root: Path, pictures: Path, tmp_path
) -> None:
    (port,) = free_ports(1)
    with service(tmp_path, bundle, index_root, port) as address:
        page.goto(address)
        before = choose(page, pictures / "000002.jpg")
    page.fill("#text", "in green")
    page.keyboard.press("Enter")
    expect(page.locator("#problem")).to_contain_text("can't be reached")
    assert page.locator(".card a").all_inner_texts() == before
    with service(tmp_path, bundle, index_root, port):
        after = found(page)  # the page asks again by itself, maybe before this process knows that the service answers
    expect(page.locator("#problem")).to_be_empty()
    assert after != before


def test_a_service_with_keys_asks_for_one_and_keeps_it(
    page: Page, bundle: Bundle, index_root: Path, pictures: Path, tmp_path: Path
) -> None:
    (tmp_path / "keys").write_text("me=a-key-of-many-characters\n")
    (port,) = free_ports(1)
    with service(tmp_path, bundle, index_root, port, "--api-keys-file", str(tmp_path / "keys")) as address:
        page.goto(address)
        expect(page.locator("#door")).to_be_visible()
        page.keyboard.press("Escape")
        page.click("#query button[type=submit]")
        expect(page.locator("#door")).to_be_visible()
        page.fill("#key", "another-key-of-characters")
        page.click("text=Enter")
        expect(page.locator("#key-problem")).to_have_text("This key is not known here.")
        page.fill("#key", "a-key-of-many-characters")
        page.click("text=Enter")
        expect(page.locator("#door")).not_to_be_visible()
        choose(page, pictures / "000002.jpg")
        with page.expect_response("**/v1/search"):
            page.reload()
        assert len(found(page)) == 24


@pytest.mark.parametrize("colours", ["light", "dark"])
def test_no_rule_of_accessibility_is_broken(browser: Browser, address: str, pictures: Path, colours: str) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe is not installed").Axe()
    context = browser.new_context(bypass_csp=True, color_scheme=colours)  # axe is a script from elsewhere

    def check(page: Page) -> None:
        violations = axe.run(page).response["violations"]
        assert not violations, [(each["id"], each["nodes"][0]["html"]) for each in violations]

    page = context.new_page()
    page.goto(address)
    choose(page, pictures / "000005.jpg")
    page.click("summary")
    check(page)
    page.click("#draw")
    check(page)
    context.close()


def test_it_is_used_by_the_keyboard_alone(page: Page, address: str, pictures: Path) -> None:
    page.goto(address)
    choose(page, pictures / "000005.jpg")
    page.focus(".card button >> nth=0")
    page.keyboard.press("ArrowRight")
    second = page.locator(".card a >> nth=1").inner_text()
    with page.expect_response("**/v1/search"):
        page.keyboard.press("Enter")
    found(page)
    expect(page.locator("#reference-name")).to_have_text(second)
    page.keyboard.type("in red")
    with page.expect_response("**/v1/search"):
        page.keyboard.press("Enter")
    assert "text=in+red" in page.url
