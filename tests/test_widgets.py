"The explorer: its state by code, its panel by widget values, and the app in a real browser by clicks."
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from datetime import datetime, timezone
from pathlib import Path
from types import SimpleNamespace
from urllib.request import urlopen

import nbformat
import numpy as np
import pytest
import torch

import film
from film.cli import main
from film.core import FilmError, pip_install, read_image, write_image
from film.network import Film
from film.widgets import KEPT, Explorer, explore, free_port, serve, signed_picture

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def model():
    "A small network with random weights, so that fusing takes no time."
    torch.manual_seed(0)
    return Film(text_width=384, grid=(36, 48), depth=1, text_encoder="all-MiniLM-L6-v2").eval()


@pytest.fixture
def explorer(images, model): return explore("a.png", "b.png", weights=model)


def test_results_are_those_of_fuse(explorer, model):
    automatic = explorer.fuse()
    explorer.set_text("a", "one warm engine")
    edited = explorer.fuse()
    assert np.array_equal(automatic.fused, film.fuse("a.png", "b.png", weights=model))
    assert np.array_equal(edited.fused, film.fuse("a.png", "b.png", text=("one warm engine", explorer.automatic[1]), weights=model))
    assert edited.scores == film.metrics(edited.fused, "a.png", "b.png") and list(edited.scores) == ["EN", "SD", "SF", "AG", "VIF", "Qabf"]
    assert [explorer.label(r) for r in explorer.results] == ["1: film, automatic texts, other weights", "2: film, text A edited, other weights"]
    for method in explorer.methods()[1:]:
        explorer.method = method
        assert np.array_equal(explorer.fuse().fused, film.fuse("a.png", "b.png", method=method))
    explorer.reset_texts()
    assert explorer.texts == explorer.automatic


def test_raw_16_bit_data_are_noted_and_can_be_stretched(images):
    write_image("raw.png", np.random.default_rng(0).integers(7000, 9000, (48, 64), np.uint16))  # of 14 bits
    def fused(explorer): explorer.method = "average"; explorer.panel.button.click(); return explorer.results[-1]
    explorer, stretched = Explorer("raw.png", "b.png"), explore("raw.png", "b.png", stretch=True)
    assert explorer.note.startswith("raw.png: its 16-bit values, 70") and said(explorer.panel) == f"press Fuse. {explorer.note}" and stretched.note == ""
    for one, stretch in ((explorer, False), (stretched, True)):
        result = fused(one)
        assert np.array_equal(result.fused, film.fuse("raw.png", "b.png", method="average", stretch=stretch))
        assert result.note == one.note and ("stretch=True" in said(one.panel)) == (not stretch)
    explorer.open("a.png", "b.png")
    assert explorer.note == "" == fused(explorer).note


def test_the_automatic_result_is_made_once_when_it_is_needed(explorer):
    explorer.set_text("b", "a dark road")
    assert explorer.difference() is None                                   # nothing fused yet
    edited = explorer.fuse()
    assert explorer.difference("previous") is None                         # nothing before it
    difference = explorer.difference("automatic")
    assert [explorer.label(r)[:23] for r in explorer.results] == ["1: film, automatic text", "2: film, text B edited,"] and explorer.results[-1] is edited
    assert np.array_equal(difference, 255 * (edited.luma - explorer.results[0].luma)) and np.abs(difference).max() > 0
    assert np.array_equal(explorer.difference("previous"), difference) and len(explorer.results) == 2
    with pytest.raises(FilmError, match="choose one of automatic, previous"): explorer.difference("best")
    explorer.weights = Film(text_width=384, grid=(36, 48), depth=1, text_encoder="all-MiniLM-L6-v2").eval()  # another model's automatic result is another one
    explorer.fuse()
    assert explorer.reference() is explorer.results[-2] and explorer.reference().given is explorer.weights


def test_only_the_latest_results_are_kept(explorer):
    explorer.method = "average"
    for _ in range(KEPT + 3): explorer.fuse()
    assert len(explorer.results) == KEPT and explorer.label(explorer.results[-1]) == f"{KEPT + 3}: average" and len(explorer.table().splitlines()) == KEPT + 2


def test_weights_are_read_once_and_compared_with_their_own_automatic_result(images, model, monkeypatch):
    import film.widgets as widgets
    model.save_pretrained("mine")
    asked = []
    original = widgets.get_network
    monkeypatch.setattr(widgets, "get_network", lambda *a: asked.append(a) or original(*a))
    explorer = Explorer("a.png", "b.png", weights="mine")
    explorer.set_text("a", "one warm engine"); explorer.fuse(); explorer.reference()
    assert len(asked) == 1 and [r.weights for r in explorer.results] == ["mine", "mine"]
    explorer.weights = "nowhere"
    with pytest.raises(FilmError, match="no such weights"): explorer.fuse()
    assert len(explorer.results) == 2


def test_choosing_pairs_and_what_cannot_be_chosen(dataset, model):
    write_image(dataset / "Image" / "MFF" / "Other" / "NEAR" / "x.png", np.zeros((20, 30), np.uint8))
    write_image(dataset / "Image" / "MFF" / "Other" / "FAR" / "x.png", np.zeros((20, 31), np.uint8))
    explorer = Explorer(data=dataset, weights=model)
    assert (explorer.dataset, explorer.name, explorer.datasets()) == ("Tiny", "p0", ["Tiny"]) and explorer.names() == [f"p{i}" for i in range(6)]
    explorer.fuse()
    state = lambda: (explorer.task.name, explorer.dataset, explorer.name, explorer.texts, len(explorer.results))
    before = state()
    for wrong, says in [(dict(name="p9"), "no pair called p9"), (dict(task="mff"), "differ in size: 30x20 and 31x20"), (dict(task="mef"), "no data set for multi-exposure"),
                        (dict(dataset="Else"), "no such dataset"), (dict(task="pan"), "choose one of")]:
        with pytest.raises(FilmError, match=says): explorer.choose(**wrong)
        assert state() == before
    explorer.choose(name="p4")
    assert explorer.name == "p4" and not explorer.results and explorer.texts == explorer.automatic
    with pytest.raises(FilmError, match="no such data folder"): Explorer(data="nowhere")
    with pytest.raises(FilmError, match="give two images"): Explorer("only.png")


def test_without_any_data_two_images_can_still_be_opened(images, monkeypatch):
    monkeypatch.delenv("FILM_DATA", raising=False)
    explorer = Explorer()
    with pytest.raises(FilmError, match="there is no pair yet"): explorer.fuse()
    assert "upload two images" in explorer.panel.status.value
    explorer.open("a.png", "b.png", task="mef")
    assert explorer.name == "b" and explorer.task.name == "mef" and "mertens" in explorer.methods() and explorer.picture().ndim == 3


@pytest.mark.parametrize("seed", range(5))
def test_the_colours_of_a_difference_can_be_read_back(seed):
    difference = np.random.default_rng(seed).normal(0, 10.0 ** -seed, (9, 7))
    picture, limit = signed_picture(difference)
    assert limit == np.abs(difference).max() or limit == .001
    red, green, blue = np.moveaxis(picture.astype(float), -1, 0)
    assert ((red >= blue) == (difference >= 0))[np.abs(difference) > .02 * limit].all()
    for side in (difference > 0, difference < 0):                                        # the farther from zero, the darker
        assert (np.diff(green[side][np.argsort(np.abs(difference[side]))]) <= 0).all()


# ---------------------------------------------------------------- the panel

def said(panel): return panel.status.value.partition(">")[2].removesuffix("</span>")


def test_a_click_fuses_with_what_the_widgets_say(explorer):
    panel = explorer.panel
    assert panel.shown.layout.display == "none" and panel.texts[0].value == explorer.automatic[0] and said(panel) == "press Fuse"
    panel.texts[1].value = "a <b>bold</b> claim"
    panel.button.click()
    assert explorer.results[-1].texts == (explorer.automatic[0], "a <b>bold</b> claim") and panel.shown.layout.display == ""
    assert "done in" in said(panel) and "gray levels" in panel.scale.value and panel.table.value.count("<tr>") == 3 and 'download="b_fused.png"' in panel.save.value
    panel.to.value = "previous"
    assert "1: film, automatic texts" in panel.change_title.value
    panel.method.value = "maximum"
    panel.button.click()
    assert "3: maximum" in panel.table.value and "2: film, text B edited" in panel.change_title.value
    panel.reset.click()
    assert panel.texts[1].value == explorer.automatic[1] and explorer.texts == explorer.automatic


def test_controls_are_off_while_it_works_and_on_again_after_an_error(explorer):
    panel, seen = explorer.panel, []
    report, explorer.report = explorer.report, lambda words: (seen.append((words, panel.button.disabled)), report(words))
    panel.button.click()
    assert [words for words, _ in seen] == ["fusing 64x48 pixels: film", "scoring"] and all(off for _, off in seen) and not panel.button.disabled
    panel.texts[0].value = ""
    panel.button.click()
    assert said(panel).startswith("text A is empty: write a sentence") and "film-wrong" in panel.status.value and not panel.button.disabled and len(explorer.results) == 1
    panel.reset.click()
    panel.weights.value = "<nowhere>"
    panel.button.click()
    assert "&lt;nowhere&gt;" in said(panel) and "<nowhere>" not in panel.status.value
    explorer.images, explorer.method = (None, None), "average"
    with pytest.raises(AttributeError): panel._do(explorer.fuse)  # a bug is named in the panel and keeps its traceback
    assert "this is a bug (AttributeError" in said(panel) and not panel.button.disabled


def test_a_pair_chosen_in_the_panel(dataset, model):
    panel = Explorer(data=dataset, weights=model).panel
    panel.name.value = "p3"
    assert panel.explorer.name == "p3" and panel.texts[0].value == panel.explorer.texts[0]
    panel.task.value = "mef"                                     # has no data set here: said, and all stays as it was
    assert "no data set for multi-exposure" in said(panel) and panel.task.value == "ivf" and panel.name.value == "p3"


def test_what_is_gone_from_the_disk_is_still_shown(dataset, model):
    panel = Explorer(data=dataset, weights=model).panel
    shutil.copytree(dataset / "Image" / "IVF" / "Tiny", dataset / "Image" / "IVF" / "Other")
    for gone in (lambda: [path.unlink() for path in (dataset / "Image" / "IVF" / "Tiny").glob("*/p0.png")], lambda: shutil.rmtree(dataset / "Image" / "IVF" / "Tiny"), lambda: shutil.rmtree(dataset)):
        gone()
        panel.button.click()
        assert "done in" in said(panel) and (panel.dataset.value, panel.name.value) == ("Tiny", "p0") and not panel.button.disabled
        assert ("Other" in panel.dataset.options) == dataset.exists()
    assert len(panel.explorer.results) == 3 and panel.table.value.count("<tr>") == 4
    panel.explorer.method = "no rule"                            # set by code
    panel.button.click()
    assert said(panel).startswith("unknown method") and not panel.button.disabled


def test_uploaded_images(images, explorer):
    (images / "text.png").write_text("not a picture")
    upload = lambda name: (dict(name=name, type="image/png", size=(images / name).stat().st_size, last_modified=datetime.now(timezone.utc), content=memoryview((images / name).read_bytes())),)
    panel = explorer.panel
    panel.uploads[0].value = upload("b.png")
    assert explorer.name == "b" and explorer.images[0].ndim == 2           # one of two: nothing happens yet
    panel.uploads[1].value = upload("text.png")
    assert said(panel).startswith("text.png: not an image")
    panel.uploads[1].value = upload("a.png")
    assert explorer.name == "a" and np.array_equal(explorer.images[0], read_image("b.png")) and panel.dataset.value == "your own"
    panel.task.value = "mef"                                               # another task for the same images
    assert explorer.task.name == "mef" and explorer.name == "a" and np.array_equal(explorer.images[0], read_image("b.png")) and "over-exposed" in explorer.texts[0]


def test_it_shows_itself_in_a_notebook(explorer):
    assert "application/vnd.jupyter.widget-view+json" in explorer._repr_mimebundle_()
    assert film.explore is explore
    done = subprocess.run([sys.executable, "-c", "import film; print(film.widgets.explore.__name__)"], capture_output=True, text=True)
    assert done.stdout.split()[0] == "explore", done.stderr


def test_nothing_is_compared_with_itself(explorer):
    panel = explorer.panel
    panel.button.click()
    assert panel.change.layout.display == "none" and "edit one and fuse again" in panel.scale.value
    alone = explorer.picture().shape
    panel.texts[0].value = "one warm engine"
    panel.button.click()
    assert panel.change.layout.display == "" and "gray levels" in panel.scale.value and explorer.picture().shape != alone


def test_missing_packages_are_said(images, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "voila.app", None)
    assert main(["app", "--no-browser"]) == 2 and "pip install -c constraints.txt -e '.[notebooks]'" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "ipywidgets", None)
    with pytest.raises(FilmError, match=re.escape(pip_install("notebooks"))): explore("a.png", "b.png")


def test_the_next_free_port_is_taken():
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        port = busy.getsockname()[1]
        if port < 65000: assert port < free_port(port) <= port + 20
    assert free_port(0) > 0
    for port in (-1, 65536):
        with pytest.raises(FilmError, match="not between 0 and 65535"): free_port(port)


def test_the_app_hands_on_what_it_was_given(dataset, monkeypatch):
    cells = []
    class Voila:
        def __init__(self, config): pass
        def initialize(self, argv): cells.append(nbformat.read(argv[0], 4).cells[0].source)
        def start(self): pass
    monkeypatch.setitem(sys.modules, "voila.app", SimpleNamespace(Voila=Voila))
    monkeypatch.setenv("JUPYTER_PATH", "")
    serve("mff", dataset, 0, browser=False, stretch=True)
    assert cells == [f"import film.widgets\nfilm.widgets.explore(task='mff', data={str(dataset)!r}, stretch=True)"]


def test_the_app_answers(dataset, tmp_path):
    "Its page, fetched without a browser."
    pytest.importorskip("voila")
    command = [sys.executable, "-m", "film", "app", "--no-browser", "--data", dataset, "--port", str(free_port(0))]
    with open(tmp_path / "errors.txt", "w") as errors, subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, start_new_session=True) as server:
        try:
            url = server.stdout.readline().partition(" ")[0]
            assert url.startswith("http://127.0.0.1:"), (tmp_path / "errors.txt").read_text()
            with urlopen(url, timeout=300) as answer: status, page = answer.status, answer.read().decode()
        finally: os.killpg(server.pid, signal.SIGTERM)
    assert status == 200 and "<title>film</title>" in page and '"application/vnd.jupyter.widget-view+json"' in page  # the panel
    assert "Traceback" not in page and "There was an error" not in page and "import film" not in page


# ---------------------------------------------------------------- the app in a browser

CHROMIUM, DRIVER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None), shutil.which("chromedriver")
FLAGS = ("headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-background-networking", "disable-component-update", "disable-sync", "window-size=1280,1000")


@pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="needs chromium and chromedriver")
def test_the_app_is_used_with_clicks_in_a_browser(tmp_path):
    pytest.importorskip("voila"); webdriver = pytest.importorskip("selenium.webdriver")
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import Select, WebDriverWait
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"user-data-dir={tmp_path / 'profile'}"): options.add_argument(f"--{flag}")
    server = subprocess.Popen([sys.executable, "-m", "film", "app", "--no-browser", "--data", "data", "--task", "mff"], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, start_new_session=True)
    try:
        url = server.stdout.readline().split()[0]
        with webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER)) as browser:
            wait = WebDriverWait(browser, 240, ignored_exceptions=[Exception])
            text = lambda: browser.find_element(By.TAG_NAME, "body").text
            browser.get(url)
            wait.until(lambda _: "press Fuse" in text())
            assert browser.title == "film" and "import film" not in text()              # the code is not shown
            areas = browser.find_elements(By.TAG_NAME, "textarea")
            assert [area.get_property("value")[:1] != "" for area in areas] == [True, True]
            button = next(b for b in browser.find_elements(By.TAG_NAME, "button") if b.text.strip() == "Fuse")
            button.click()
            wait.until(lambda _: "1: film, automatic texts" in text() and "done in" in text())
            areas[1].clear(); areas[1].send_keys("Blurred trees behind a sharp fence.")
            button.click()
            wait.until(lambda _: "2: film, text B edited" in text() and "brighter" in text())
            assert "Qabf" in text() and all(browser.execute_script("return arguments[0].naturalWidth", image) > 100 for image in browser.find_elements(By.CSS_SELECTOR, "img") if image.is_displayed())
            areas[0].clear(); areas[0].send_keys(" ")
            button.click()
            wait.until(lambda _: "text A is empty" in text() and button.is_enabled())
            pair = next(s for s in map(Select, browser.find_elements(By.TAG_NAME, "select")) if "coins" in [o.text for o in s.options] or "fence" in [o.text for o in s.options])
            other = [o.text for o in pair.options if not o.is_selected()][0]
            pair.select_by_visible_text(other)
            wait.until(lambda _: "press Fuse" in text())
            assert len(areas[0].get_property("value")) > 100                             # described anew
            for width in (375, 768, 1280):                                               # nothing sticks out, on a phone neither
                browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", dict(width=width, height=900, deviceScaleFactor=1, mobile=width < 1000))
                time.sleep(.5)
                assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(30); server.stdout.close()
