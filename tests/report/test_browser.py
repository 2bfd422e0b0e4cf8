"""The pages in a browser: from disk, without network. Skipped where no Chromium is found.

Chromium: Debian's package `chromium`, or the path of another one in the environment variable CHROMIUM.
"""

import os
import shutil

import pytest

from scripts.report import report

pytestmark = pytest.mark.browser
# the software renderer gives WebGL2 without a GPU
FLAGS = ["--no-sandbox", "--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
TIMEOUT = 300_000  # ms; a busy machine renders slowly
# Where the brightest pixels of a viewer's axial plane are: share of its width and of its height (the upper third).
BRIGHTEST = """(index) => {
  const viewer = viewers[index];
  viewer.drawScene();
  const copy = document.createElement("canvas");
  copy.width = viewer.canvas.width; copy.height = viewer.canvas.height;
  const context = copy.getContext("2d");
  context.drawImage(viewer.canvas, 0, 0);
  const [left, top, width, height] = viewer.screenSlices[0].leftTopWidthHeight;
  const pixels = context.getImageData(left, top, width, height).data;
  let sum = 0, x = 0, y = 0, lit = 0;
  for (let i = 0; i < pixels.length; i += 4) {
    const grey = pixels[i] === pixels[i + 1] && pixels[i] === pixels[i + 2];
    if (grey && pixels[i] > 60) lit++;
    if (grey && pixels[i] > 190) { sum++; x += (i / 4) % width; y += Math.floor(i / 4 / width); }
  }
  return { lit: lit / (width * height), bright: sum, x: x / sum / width, y: y / sum / height };
}"""


@pytest.fixture(scope="module")
def browser():
    """Chromium, headless."""
    playwright = pytest.importorskip("playwright.sync_api")
    program = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    if not program:
        pytest.skip("no Chromium here: install one, or set CHROMIUM to its path")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=program, args=FLAGS, timeout=TIMEOUT)
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser):
    """Open a file without network; `page.complaints` is what went wrong and what it asked the network for."""
    context = browser.new_context(viewport={"width": 900, "height": 700}, offline=True)
    context.set_default_timeout(TIMEOUT)

    def function(path):
        page = context.new_page()
        page.complaints = []
        page.on("console", lambda m: page.complaints.append(m.text) if m.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: page.complaints.append(str(error)))
        page.on(
            "request", lambda r: None if r.url[:5] in ("file:", "data:", "blob:") else page.complaints.append(r.url)
        )
        page.goto(path.as_uri())
        return page

    yield function
    context.close()


@pytest.fixture(scope="module")
def folder(results, tmp_path_factory):
    out, dataset_dir, real = results
    folder = tmp_path_factory.mktemp("pages")
    report(str(out), str(dataset_dir), str(real), str(folder))
    return folder


def test_viewers_show_the_case_and_move_together(open_page, folder):
    page = open_page(folder / "case-001.html")
    page.wait_for_selector("body.ready")
    assert page.evaluate("viewers.length") == 4
    # the axial plane through the ball, which lies on the patient's left, in front
    page.evaluate("viewers.forEach(v => { v.scene.crosshairPos = v.mm2frac([0, 0, 24]); })")
    shown = page.evaluate(BRIGHTEST, 1)
    assert shown["lit"] > 0.2
    assert shown["bright"] > 50
    assert shown["x"] > 0.6
    assert shown["y"] < 0.45
    # neurological display turns it
    page.keyboard.press("r")
    assert page.evaluate(BRIGHTEST, 1)["x"] < 0.4
    assert "left on the left" in page.inner_text("#convention")

    places = "viewers.map(v => [...v.frac2mm(v.scene.crosshairPos)].slice(0, 3).map(Math.round).join())"
    before = page.evaluate(places)
    canvas = page.locator("#viewer canvas").nth(0)
    canvas.hover(position={"x": 100, "y": 60})
    page.mouse.wheel(0, 100)
    page.wait_for_function(
        "before => viewers[3].frac2mm(viewers[3].scene.crosshairPos)[2].toFixed() !== before", arg="24"
    )
    after = page.evaluate(places)
    assert len(set(before)) == len(set(after)) == 1
    assert before != after
    page.keyboard.press("PageUp")
    assert len(set(page.evaluate(places))) == 1
    assert page.evaluate(places) != after
    assert not page.complaints


def test_a_browser_without_webgl2_shows_the_picture(open_page, folder):
    page = open_page(folder / "index.html")
    page.add_init_script("HTMLCanvasElement.prototype.getContext = () => null")
    page.goto((folder / "case-001.html").as_uri())
    page.wait_for_function("document.getElementById('no-viewer').textContent")
    assert page.is_visible("img.picture")
    assert not page.is_visible("#viewer")


def test_the_table_sorts_by_a_click(open_page, folder):
    page = open_page(folder / "index.html")
    names = "[...document.querySelectorAll('#cases tbody tr')].map(row => row.cells[1].textContent)"
    assert page.evaluate(names) == ['a <b>"&', "b", "c"]
    page.click("text=source: distance from training >> nth=0")
    assert page.evaluate(names) == ["c", "b", 'a <b>"&']
    page.click("text=source: distance from training >> nth=0")
    assert page.evaluate(names) == ['a <b>"&', "b", "c"]
    assert not page.complaints
