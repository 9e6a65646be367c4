"""The page of `ganlib serve` in headless Chromium: clicks, keys, pictures that change, a phone's width."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import socket
import threading
import urllib.request
from contextlib import contextmanager

import pytest
import torch
import uvicorn
from PIL import Image
from zoo import config, game_of, spec_of

from ganlib import shards
from ganlib.export import save_generator
from pipelines.serve.api import api
from pipelines.serve.settings import TOKEN, Settings

playwright = pytest.importorskip("playwright.sync_api", reason="needs Playwright (pip install playwright)")
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
REFUSED = re.compile("responded with a status of 4(01|22)")  # Chromium's own line, which a page cannot keep it from
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium (apt-get install chromium)")


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as running:
        browser = running.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"] if os.geteuid() == 0 else [])
        yield browser
        browser.close()


@contextmanager
def served(settings):
    """The address of the application, by uvicorn in a thread."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(api(settings), log_level="error", lifespan="on"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


@pytest.fixture
def open_page(browser):
    """`open_page(address, width)`: the page, which may neither report an error nor ask another site for anything."""
    wrong, pages = [], []

    def said(message):
        if message.type in ("error", "warning") and not REFUSED.search(message.text):
            wrong.append(message.text)

    def opened(address, width=1280):
        page = browser.new_page(viewport={"width": width, "height": 900})
        page.set_default_timeout(30_000)
        page.on("console", said)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("request", lambda asked: None if asked.url.startswith((address, "blob:")) else wrong.append(asked.url))
        page.goto(address)
        pages.append(page)
        return page

    yield opened
    for page in pages:
        page.close()
    assert wrong == []


def save(family, folder, spec=None):
    spec = spec or spec_of(family)
    game = game_of(family, spec)
    others = game.modules_besides_generator if game.answers else {}
    known = torch.zeros(1, len(spec.attributes)) if spec.attributes else None
    save_generator(folder, game.generator, network=config(family), spec=spec, attributes=known, others=others)
    return str(folder)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    models = [save(family, tmp_path_factory.mktemp(family)) for family in ("mlp", "dcgan")]
    with served(Settings(model=models[0], challenger=models[1])) as address:
        yield address


def drawn(page, within="#results"):
    """A digest of each canvas."""
    pixels = page.locator(f"{within} canvas").evaluate_all("all => all.map(one => one.toDataURL())")
    return [hashlib.sha256(one.encode()).hexdigest() for one in pixels]


def status(page, text):
    playwright.expect(page.locator("#status")).to_have_text(text)


def test_samples_are_drawn_and_change_with_seed_class_and_truncation(pictures, open_page):
    page = open_page(pictures)
    status(page, "6 samples, seed 0")
    first = drawn(page)
    assert len({*first}) == 6
    page.get_by_role("button", name="Next seed").click()
    status(page, "6 samples, seed 1")
    assert not {*first} & {*drawn(page)}
    page.locator("#draw select").select_option("b")
    page.get_by_label("How many").fill("3")
    page.locator("#draw input[name=seed]").fill("0")
    page.get_by_role("button", name="Draw").click()
    status(page, "3 samples, seed 0")
    of_class = drawn(page)
    assert of_class[1] == first[1], "the class of the second in turn"
    page.get_by_label("Truncation").check()
    page.get_by_label("How many").fill("4")
    page.locator("#draw input[name=seed]").press("Enter")
    status(page, "4 samples, seed 0")
    assert not {*of_class} & {*drawn(page)}
    page.locator("#draw input[name=seed]").fill("-1")
    page.get_by_role("button", name="Draw").click()
    assert page.locator("#draw input[name=seed]").evaluate("field => !field.validity.valid"), "the browser says so"


def test_favourites_are_pinned_by_keyboard_and_led_into_one_another(pictures, open_page):
    page = open_page(pictures)
    status(page, "6 samples, seed 0")
    page.locator("#draw select").select_option("c")
    page.get_by_role("button", name="Draw").click()
    status(page, "6 samples, seed 0")
    pinned = drawn(page)
    assert page.get_by_role("button", name="Interpolate").is_hidden()
    for index in (0, 4):
        page.get_by_role("button", name=f"Pin sample {index}, class c").press("Enter")
    playwright.expect(page.locator("#pins li")).to_have_count(2)
    page.get_by_label("Steps").fill("5")
    page.get_by_role("button", name="Interpolate").press("Enter")
    status(page, "5 steps")
    assert drawn(page, "#pins") == [pinned[0], pinned[4]]
    assert len({*drawn(page, "#path")}) == 5
    assert "v1/interpolations" in page.locator("#code pre").inner_text()
    page.get_by_role("button", name="Choose favourite c, sample 4 of seed 0").press("Enter")
    page.get_by_label("Steps").fill("3")
    page.get_by_role("button", name="Walk").press("Enter")
    status(page, "3 steps")
    walked = drawn(page, "#path")
    assert (len({*walked}), walked[1]) == (3, pinned[0])
    page.get_by_role("button", name="Pin sample 0, class c").click()
    playwright.expect(page.locator("#pins li")).to_have_count(1)
    playwright.expect(page.get_by_role("button", name="Interpolate")).to_be_disabled()


def test_the_challenger_stands_next_to_it(pictures, open_page):
    page = open_page(pictures)
    status(page, "6 samples, seed 0")
    page.get_by_label("next to the challenger").check()
    page.get_by_role("button", name="Draw").click()
    playwright.expect(page.locator("#results section")).to_have_count(2)
    assert len({*drawn(page)}) == 12


def test_the_code_gives_what_is_seen(pictures, open_page, tmp_path):
    page = open_page(pictures)
    status(page, "6 samples, seed 0")
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.get_by_role("button", name="Copy curl").click()
    status(page, "curl copied")
    command = page.evaluate("navigator.clipboard.readText()")
    body, address = re.fullmatch(r"curl --json '(.*)' -o made\.png (\S+)", command).groups()
    assert json.loads(body) == {"n": 6, "seed": 0}
    request = urllib.request.Request(address, body.encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request) as answer:
        (tmp_path / "made.png").write_bytes(answer.read())
    with Image.open(tmp_path / "made.png") as made:
        assert made.width > 0


@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_is_wider_than_the_screen(pictures, open_page, width):
    page = open_page(pictures, width)
    status(page, "6 samples, seed 0")
    page.locator("#results button").first.click()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    small = page.locator("button:visible, select:visible").evaluate_all(
        "all => all.filter(one => one.getBoundingClientRect().height < 40).map(one => one.outerHTML)"
    )
    assert small == [], "too small for a finger"


def test_rows_are_a_table(open_page, tmp_path):
    with served(Settings(model=save("ctgan", tmp_path))) as address:
        page = open_page(address, 390)
        status(page, "20 samples, seed 0")
        before = page.locator("tbody").inner_text()
        playwright.expect(page.locator("tbody tr")).to_have_count(20)
        assert page.locator("thead th").count() > 1
        page.get_by_role("button", name="Next seed").click()
        status(page, "20 samples, seed 1")
        assert page.locator("tbody").inner_text() != before
        page.get_by_label("Rows for which").fill("no such=1")
        page.get_by_role("button", name="Draw").click()
        playwright.expect(page.locator("#status.wrong")).to_contain_text("no column 'no such'")
        assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_lines_are_a_list(open_page, tmp_path):
    with served(Settings(model=save("relgan", tmp_path))) as address:
        page = open_page(address)
        status(page, "20 samples, seed 0")
        playwright.expect(page.locator("ol.lines li")).to_have_count(20)


def test_training_examples_are_shown(open_page, tmp_path, training_data):
    model = save("mlp", tmp_path, shards.read_spec(training_data / "prepared"))
    with served(Settings(model=model, training_data=str(training_data))) as address:
        page = open_page(address, 390)
        status(page, "20 samples, seed 0")
        page.get_by_role("button", name="Pin sample 1, class 1").click()
        page.get_by_role("button", name="Nearest training examples").click()
        status(page, "nearest training examples of sample 1")
        assert len(drawn(page, "#neighbours")) == 9
        distances = [float(text) for text in page.locator("#neighbours li").all_inner_texts()]
        assert distances == sorted(distances)
        assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_a_model_is_asked_about_a_file(open_page, tmp_path):
    with served(Settings(model=save("f_anogan", tmp_path))) as address:
        page = open_page(address)
        status(page, "20 samples, seed 0")
        Image.linear_gradient("L").resize((24, 16)).save(tmp_path / "photo.png")
        page.get_by_label("An example to ask the model about").set_input_files(tmp_path / "photo.png")
        page.get_by_role("button", name="Ask", exact=True).click()
        status(page, "asked about photo.png")
        assert page.locator("thead th").all_inner_texts() == ["example", "score", "residual"]
        assert [page.locator("#results h2").nth(i).inner_text() for i in (2, 3)] == ["reconstruction", "map"]
        assert page.get_by_alt_text("What the model made").count() == 2


def test_a_model_is_asked_about_lines(open_page, tmp_path):
    with served(Settings(model=save("relgan", tmp_path))) as address:
        page = open_page(address)
        status(page, "20 samples, seed 0")
        lines = [line for line in page.locator("ol.lines li").all_inner_texts() if line][:2]
        page.get_by_label("Lines to ask the model about").fill("\n".join(lines))
        page.get_by_role("button", name="Ask", exact=True).click()
        status(page, "asked about 2 examples")
        assert page.locator("tbody tr").count() == 2
        assert page.locator("tbody td.number").count() == 4


@pytest.mark.parametrize("family", ["pix2pix", "restore"])
def test_files_are_translated_and_restored(family, open_page, tmp_path):
    with served(Settings(model=save(family, tmp_path))) as address:
        page = open_page(address)
        Image.linear_gradient("L").resize((24, 16)).save(tmp_path / "photo.png")
        page.get_by_label("A file for the model").set_input_files(tmp_path / "photo.png")
        page.get_by_role("button", name="Make").click()
        status(page, "made of photo.png")
        made = page.get_by_alt_text("What the model made")
        assert made.evaluate("image => image.naturalWidth") > 0
        assert "--data-binary @'photo.png'" in page.locator("#code pre").inner_text()


def test_a_file_is_changed_by_what_is_typed(open_page, tmp_path):
    with served(Settings(model=save("stargan", tmp_path))) as address:
        page = open_page(address)
        Image.linear_gradient("L").resize((24, 16)).save(tmp_path / "face.png")
        page.get_by_label("A file for the model").set_input_files(tmp_path / "face.png")
        page.get_by_role("spinbutton", name="age").fill("-20.5")
        page.get_by_role("button", name="Make").click()
        status(page, "made of face.png")
        assert page.get_by_alt_text("What the model made").evaluate("image => image.naturalWidth") > 0
        assert "attribute=age%3D-20.5" in page.locator("#code pre").inner_text()


def test_the_token_is_asked_for(open_page, tmp_path, monkeypatch):
    monkeypatch.setenv(TOKEN, "hush")
    with served(Settings(model=save("mlp", tmp_path))) as address:
        page = open_page(f"{address}/")
        page.get_by_label("Token of the service").fill("hush")
        page.get_by_role("button", name="Use it").click()
        status(page, "6 samples, seed 0")
        assert page.get_by_label("Token of the service").is_hidden()
        assert "hush" not in page.content()
        assert "$GANLIB_API_TOKEN" in page.locator("#code pre").last.inner_text()
