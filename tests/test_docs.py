"The site of make docs: built from the stored notebooks, whole in itself, and checked in a browser at the width of a desk and of a phone."
import json
import re
import shutil
import subprocess
import sys
import threading
from functools import partial
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

ROOT = Path(__file__).resolve().parents[1]
CHAPTERS = sorted((ROOT / "nbs").glob("[0-9]*.ipynb"))
if find_spec("sphinx") is None or find_spec("myst_nb") is None: pytest.skip("needs the extra docs: pip install '.[docs]'", allow_module_level=True)


class Page(HTMLParser):
    "The ids of a page, its links, and what it loads."
    def __init__(self, path):
        super().__init__()
        self.ids, self.links, self.loads, self.text = set(), [], [], []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.ids |= {attributes[key] for key in ("id", "name") if attributes.get(key)}
        if tag == "a" and "href" in attributes: self.links.append(attributes["href"])
        if tag == "link" and attributes.get("rel") not in ("canonical", "index", "search", "next", "prev"): self.loads.append(attributes["href"])
        if tag in ("script", "img", "iframe", "source") and attributes.get("src"): self.loads.append(attributes["src"])

    def handle_data(self, data): self.text.append(data)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    "The site, built once; the build fails at any warning."
    folder = tmp_path_factory.mktemp("docs") / "site"
    made = subprocess.run([sys.executable, ROOT / "tools" / "docs.py", folder], capture_output=True, text=True)
    assert made.returncode == 0, made.stderr[-2000:]
    return folder


@pytest.fixture(scope="module")
def pages(site):
    return {path: Page(path) for path in site.rglob("*.html") if path.parent.name != "_static"}


def title(notebook):
    return next(line[2:] for cell in json.loads(notebook.read_text())["cells"] for line in "".join(cell["source"]).splitlines() if line.startswith("# "))


def test_no_link_is_broken_and_nothing_is_fetched_from_elsewhere(site, pages):
    "Every address inside the site exists, its anchor too; what a page loads lies in the site."
    broken, outside = [], []
    for path, page in pages.items():
        outside += [(path.name, address) for address in page.loads if urlsplit(address).netloc]
        for address in page.links + page.loads:
            parts = urlsplit(address)
            if parts.scheme or parts.netloc: continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if target.is_dir(): target /= "index.html"
            if not target.is_file(): broken.append((path.name, address))
            elif parts.fragment and target.suffix == ".html" and unquote(parts.fragment) not in pages[target].ids: broken.append((path.name, address))
    assert not broken and not outside
    assert len(pages) > 2 * len(CHAPTERS) and sum(len(page.links) for page in pages.values()) > 1000  # the crawl saw the site


def test_chapters_stand_in_order_with_their_titles(site):
    sidebar = re.search(r'<p aria-level="2" class="caption" role="heading"><span class="caption-text">Chapters</span></p>(.*?)</ul>', (site / "index.html").read_text(), re.S)[1]
    entries = re.findall(r'href="([^"]+)">([^<]+)</a>', sidebar)
    assert [(f"nbs/{path.stem}.html", title(path)) for path in CHAPTERS] == [(href, text.replace("&amp;", "&")) for href, text in entries]


def test_directives_and_hidden_cells_do_not_show(site, pages):
    for path in [site / "index.html", *(site / "nbs" / f"{path.stem}.html" for path in CHAPTERS)]:
        text = "".join(pages[path].text)
        assert not re.search(r"^(#\||%%sh)", text, re.M) and "default_exp" not in text, path.stem


def test_each_public_function_has_its_entry(site, pages):
    "With the parameters' docments, and types that lead to their classes."
    import film.core, film.evaluation, film.fusion
    for module in (film.core, film.evaluation, film.fusion):
        missing = [name for name in module.__all__ if callable(getattr(module, name)) and f"{module.__name__}.{name}" not in pages[site / "api" / f"{module.__name__}.html"].ids]
        assert not missing
    entry = (site / "api" / "film.core.html").read_text()
    assert "upper case works too" in entry and re.search(r'<strong>task</strong> \(<em>str.*?href="#film.core.Task"', entry)


@pytest.fixture(scope="module")
def address(site):
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *arguments): pass
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=site))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}/"
    server.shutdown()


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    chromium, driver = shutil.which("chromium") or shutil.which("google-chrome"), shutil.which("chromedriver")
    if not chromium or not driver or find_spec("selenium") is None: pytest.skip("needs chromium, chromedriver and selenium")
    from selenium.webdriver import Chrome, ChromeOptions, ChromeService
    options = ChromeOptions()
    options.binary_location = chromium
    for flag in ("headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-background-networking", "disable-component-update", "disable-sync", "disable-dev-shm-usage",
                 "host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1", f"user-data-dir={tmp_path_factory.mktemp('chromium')}"): options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = Chrome(options=options, service=ChromeService(driver))
    yield browser
    browser.quit()


def to_visit(site):
    "Every page but listings of source and the search, which is empty without a word to look for."
    return [path for path in sorted(site.rglob("*.html")) if path.relative_to(site).parts[0] not in ("_modules", "_static", "search.html")]


def resize(browser, width, height):
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", dict(width=width, height=height, deviceScaleFactor=1, mobile=width < 600))


def wait(browser, what, script, *arguments):
    "What the script returns, once it is true."
    from selenium.common.exceptions import TimeoutException
    from selenium.webdriver.support.ui import WebDriverWait
    try: return WebDriverWait(browser, 30, poll_frequency=0.1).until(lambda browser: browser.execute_script(script, *arguments))
    except TimeoutException: pytest.fail(f"{browser.current_url}: {what}")


@pytest.mark.parametrize("width, height", [(1400, 1000), (390, 844)], ids=["desk", "phone"])
def test_pages_in_a_browser(site, address, browser, width, height):
    "No console error, every picture loads, formulas are typeset, nothing is wider than the window."
    resize(browser, width, height)
    formulas = pictures = 0
    shown = to_visit(site)
    for path in shown:
        browser.get_log("browser")  # empties it
        browser.get(address + str(path.relative_to(site)))
        seen = wait(browser, "formulas or pictures are missing", """
            const math = document.querySelectorAll('.bd-article .math'), images = [...document.querySelectorAll('.bd-article img')];
            for (const image of images) image.loading = 'eager';
            return document.readyState == 'complete' && [...math].every(m => m.querySelector('mjx-container svg')) && images.every(i => i.complete && i.naturalWidth > 0)
                ? [math.length, images.length, document.querySelectorAll('mjx-merror, [data-mjx-error]').length] : null""")
        formulas, pictures = formulas + seen[0], pictures + seen[1]
        assert seen[2] == 0, f"{path.name}: a formula with an error"
        wide = browser.execute_script("""
            const width = arguments[0];  // not innerWidth: a phone's window grows with what is too wide
            const scrolls = e => e.matches('.bd-article') ? false : ['auto', 'scroll', 'hidden'].includes(getComputedStyle(e).overflowX) && e.getBoundingClientRect().right <= width + 1 || scrolls(e.parentElement);
            return Math.max(document.documentElement.scrollWidth, document.body.scrollWidth) > width ? ['page'] :
                [...document.querySelectorAll('.bd-article *')].filter(e => e.getBoundingClientRect().right > width + 1 && !scrolls(e.parentElement)).map(e => e.outerHTML.slice(0, 120))""", width)
        assert not wide, f"{path.name} is wider than the window: {wide[:3]}"
        errors = [entry["message"] for entry in browser.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]
        assert not errors, f"{path.name}: {errors}"
    assert formulas >= 20 and pictures >= 15 and len(shown) > 2 * len(CHAPTERS)


def test_search_finds_a_word_and_a_function(address, browser):
    resize(browser, 1400, 1000)
    browser.get(address + "index.html")
    browser.find_element("css selector", ".search-button-field").click()
    field = browser.find_element("css selector", "dialog input[type=search]")
    wait(browser, "the search dialog does not open", "return arguments[0].checkVisibility()", field)
    field.send_keys("pyramid\n")
    results = "return [...document.querySelectorAll('#search-results li a')].map(a => a.textContent)"
    wait(browser, "no result", f"return ({results.replace('return ', '', 1)}).some(t => t.includes('Baselines'))")
    browser.get(address + "search.html?q=contact_sheet")
    wait(browser, "no result", f"return ({results.replace('return ', '', 1)}).some(t => t.includes('film.core.contact_sheet'))")
    browser.find_element("partial link text", "film.core.contact_sheet").click()
    assert "api/film.core.html" in browser.current_url


def test_sidebar_on_a_phone(address, browser):
    "Closed at first; the button opens it, an entry leads to its chapter."
    resize(browser, 390, 844)
    browser.get(address + "index.html")
    visible = "const box = [...document.querySelectorAll('a')].filter(a => a.textContent.trim().startsWith('05 ·') && a.closest('nav, .bd-sidebar-primary, dialog')).map(a => a.getBoundingClientRect()); return box.some(b => b.left >= 0 && b.right <= innerWidth && b.width > 0)"
    assert not browser.execute_script(visible)
    browser.find_element("css selector", ".primary-toggle").click()
    wait(browser, "the sidebar does not open", visible)
    entry = next(link for link in browser.find_elements("css selector", "a.reference.internal") if link.text.startswith("05 ·") and link.is_displayed())
    browser.execute_script("arguments[0].scrollIntoView()", entry)
    entry.click()
    wait(browser, "the entry leads nowhere", "return location.pathname.endsWith('nbs/05_losses.html')")
