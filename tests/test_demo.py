"""The page in the browser, as a visitor uses it, in headless Chromium."""

import os
import pathlib
import signal
import socket
import tempfile
import threading
import time

import jax
import numpy as np
import pytest
from helpers import refused
from PIL import Image
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

import coltran_jax
from coltran_jax.cli import demo
from coltran_jax.demo import page, work
from coltran_jax.errors import ImageError
from coltran_jax.inference import Inference

pytest.importorskip("gradio")
LIMITS = page.Limits(max_megabytes=1, max_megapixels=0.1)


@pytest.fixture(scope="module")
def server(tiny_bundle_path):
    """The page's address and the folder of its files."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with page.folder_for_files() as folder:
        pipeline = coltran_jax.load_pipeline(tiny_bundle_path, devices=jax.devices()[:1])
        built = page.build(pipeline, pathlib.Path(folder), LIMITS)
        page.launch(built, LIMITS, host="127.0.0.1", port=port, share=False, wait=False)
        yield f"http://127.0.0.1:{port}", pathlib.Path(folder)
        built.close()


@pytest.fixture
def visit(server, browser):
    browser.get(server[0])
    until(browser, lambda b: b.find_elements(By.CSS_SELECTOR, "#upload input[type=file]"))
    return browser


def until(browser, condition):
    return WebDriverWait(browser, 90, poll_frequency=0.1).until(condition)


def upload(browser, path):
    browser.find_element(By.CSS_SELECTOR, "#upload input[type=file]").send_keys(str(path))
    until(browser, lambda b: path.stem[:4] in b.find_element(By.ID, "upload").text or messages(b))


def messages(browser):
    return " ".join(found.text for found in browser.find_elements(By.CSS_SELECTOR, ".toast-body"))


def samples(browser):
    return [
        image.get_attribute("src") for image in browser.find_elements(By.CSS_SELECTOR, "#samples .thumbnail-item img")
    ]


def colorized(browser):
    """Presses the button and waits for other samples than before."""
    before = samples(browser)
    browser.find_element(By.ID, "start").click()
    until(browser, lambda b: len(samples(b)) == 3 and set(samples(b)).isdisjoint(before))
    return samples(browser)


def paint(browser, editor):
    canvas = browser.find_element(By.CSS_SELECTOR, f"#{editor} canvas")
    browser.execute_script("arguments[0].scrollIntoView()", canvas)
    actions = ActionChains(browser).move_to_element(canvas).click_and_hold()
    for _ in range(6):
        actions = actions.move_by_offset(12, 0)
    actions.release().perform()
    # The page sends what was painted a moment later.
    time.sleep(1.5)


@pytest.mark.slow
def test_a_visitor_colours_paints_a_hint_redoes_a_region_and_downloads(visit, server, tmp_path):
    # A hostile name, which is no folder on the way to a file elsewhere, nor part of the page.
    photo = tmp_path / "..%2f<b>ro & 'cks'.png"
    Image.fromarray(np.random.default_rng(0).integers(60, 190, (90, 120, 3), np.uint8)).save(photo)
    upload(visit, photo)
    until(visit, lambda b: b.find_elements(By.CSS_SELECTOR, "#hints canvas"))
    time.sleep(2)
    colorized(visit)
    assert visit.find_element(By.ID, "note").text == ""
    paint(visit, "hints")
    colorized(visit)
    until(visit, lambda b: "The known colours take" in b.find_element(By.ID, "note").text)
    downloads = tmp_path / "downloads"
    visit.find_element(By.ID, "download").click()
    until(visit, lambda b: list(downloads.glob("*.png")))
    (file,) = downloads.glob("*.png")
    hinted = np.asarray(Image.open(file))
    assert hinted.shape == (90, 120, 3)
    # Painted blue, in the middle and to the right of it.
    red, _, blue = hinted[40:50, 62:72].reshape(-1, 3).mean(axis=0)
    assert blue > red + 20
    before = samples(visit)
    paint(visit, "region")
    visit.find_element(By.ID, "again").click()
    until(visit, lambda b: len(samples(b)) == 3 and set(samples(b)).isdisjoint(before))
    redone = [np.asarray(Image.open(file)) for file in server[1].glob("visit-*/*/*-1.png")]
    # Outside of what was painted over nothing changes, and within it something does.
    assert any((one[:20] == hinted[:20]).all() and (one != hinted).any() for one in redone)
    assert not messages(visit)
    visit.get("about:blank")
    until(visit, lambda b: not list(server[1].glob("visit-*/*")))


@pytest.mark.parametrize(
    ("name", "message"),
    [("text.png", "text.png: "), ("large.png", "0.2 megapixels, expected at most 0.1"), ("large.bin", "maximum")],
)
def test_what_cannot_be_used_brings_a_message(visit, name, message, tmp_path):
    if name == "text.png":
        (tmp_path / name).write_text("no image")
    elif name == "large.png":
        Image.new("L", (500, 400)).save(tmp_path / name)
    else:
        (tmp_path / name).write_bytes(bytes(2 * 2**20))
    upload(visit, tmp_path / name)
    until(visit, lambda b: message in messages(b) or message in b.find_element(By.TAG_NAME, "body").text)
    assert str(tmp_path.parent) not in messages(visit)
    assert "coltran-demo" not in messages(visit)


def test_a_single_pixel_is_an_image_and_stop_ends_its_drawing(visit, tmp_path, monkeypatch):
    reached, released = threading.Event(), threading.Event()
    encode = Inference.encode

    def held(self, gray):
        reached.set()
        assert released.wait(60)
        return encode(self, gray)

    monkeypatch.setattr(Inference, "encode", held)
    Image.new("RGB", (1, 1), (90, 100, 110)).save(tmp_path / "pixel.png")
    upload(visit, tmp_path / "pixel.png")
    time.sleep(2)
    visit.find_element(By.ID, "start").click()
    assert reached.wait(60)
    visit.find_element(By.ID, "stop").click()
    # The page sends it a moment later.
    time.sleep(1.5)
    released.set()
    until(visit, lambda b: "Stopped." in messages(b))
    assert not samples(visit)
    assert len(colorized(visit)) == 3


def test_an_example_is_there_for_the_next_visitor_too(visit, server):
    until(visit, lambda b: len(b.find_elements(By.CSS_SELECTOR, "#examples .thumbnail-item")) == len(page.EXAMPLES))
    visit.find_elements(By.CSS_SELECTOR, "#examples .thumbnail-item")[0].click()
    time.sleep(2)
    assert len(colorized(visit)) == 3
    visit.get("about:blank")
    until(visit, lambda b: not list(server[1].glob("visit-*/*")))
    assert len({file.name for path in page.EXAMPLES for file in server[1].glob(f"*/{path.name}")}) == len(page.EXAMPLES)


def test_names_of_uploads_become_names_of_files(tmp_path):
    Image.new("L", (2, 2)).save(tmp_path / "a b;$(c)..png")
    assert work.opened(tmp_path / "a b;$(c)..png", tmp_path, 1).name == "a_b___c__"
    (tmp_path / "none.txt").write_text("")
    with pytest.raises(ImageError, match=r"^none.txt: "):
        work.opened(tmp_path / "none.txt", tmp_path, 1)


def test_paint_of_later_layers_is_above():
    layers = [np.zeros((2, 3, 4), np.uint8) for _ in range(3)]
    assert work.painted(layers) is None
    layers[0][0, 0] = (255, 0, 0, 255)
    layers[1][0, :2] = (0, 0, 255, 255)
    found = work.painted(layers)
    assert found[0, 0].tolist() == [0, 0, 255, 255]
    assert found[1].max() == 0


def test_the_command_passes_its_options_on(tiny_bundle_path, monkeypatch, capsys):
    monkeypatch.setattr(page, "folder_for_files", tempfile.TemporaryDirectory)
    monkeypatch.setattr(signal, "signal", lambda *args: None)
    passed = {}
    monkeypatch.setattr(page, "launch", lambda built, limits, **kwargs: passed.update(kwargs, limits=limits))
    options = ["--host", "0.0.0.0", "--port", "8001", "--share", "yes", "--max_megapixels", "2", "--max_megabytes", "3"]
    assert demo.main(["--weights", str(tiny_bundle_path), *options]) == 0
    assert passed == {"host": "0.0.0.0", "port": 8001, "share": True, "limits": page.Limits(3, 2.0)}
    assert capsys.readouterr().out == "http://0.0.0.0:8001\n"


def test_a_port_that_is_taken_is_refused_in_one_line(server, capsys):
    port = server[0].rsplit(":", 1)[1]
    before = os.environ["GRADIO_TEMP_DIR"]
    try:
        assert port in refused(capsys, "demo", "--port", port)
    finally:
        os.environ["GRADIO_TEMP_DIR"] = before
