"""Pages in headless Chromium: no console message, no request, nothing live, nothing too wide."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from elchat import report
from elchat.data.view import Piece, Token
from elchat.report import compare, tokens
from tests import reported_run

playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
WIDTHS = {"escritorio": 1100, "teléfono": 390}


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("hace falta chromium")
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def pages(tmp_path: Path) -> dict[str, Path]:
    """A report with everything, one with little, a comparison, and token views."""
    rich = reported_run.write(tmp_path, "una")
    poor = reported_run.write(tmp_path, "otra", extras=False)
    report.write(rich, fertility={"es": {"tokens": 2130, "words": 1000, "bytes": 6000}})
    report.write(poor)
    both = [report.gather(rich), report.gather(poor)]
    piece = Piece("a.jsonl", [Token(1, reported_run.EVIL, False, True), Token(2, "ñ", True, False)])
    return {
        "entero": rich.path / "report.html",
        "pobre": poor.path / "report.html",
        "comparación": report.write_page(tmp_path / "c.html", compare.render(both)),
        "máscara": report.write_page(tmp_path / "m.html", tokens.mask_page("m", [piece])),
    }


def open_page(browser, path: Path, width: int, scheme: str):
    """The page, what it logged and what it asked for beyond itself."""
    context = browser.new_context(
        viewport={"width": width, "height": 800}, color_scheme=scheme, locale="es"
    )
    page, heard, asked = context.new_page(), [], []
    page.on("console", lambda message: heard.append(message.text))
    page.on("pageerror", lambda error: heard.append(str(error)))
    page.on("dialog", lambda dialog: heard.append(dialog.message))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(path.as_uri(), wait_until="load")
    outside = [url for url in asked if url != path.as_uri() and not url.startswith("data:")]
    return page, heard, outside


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS.values(), ids=WIDTHS.keys())
def test_pages_are_silent_closed_and_fit(browser, pages, width, scheme):
    for name, path in pages.items():
        page, heard, outside = open_page(browser, path, width, scheme)
        assert heard == [], name
        assert outside == [], name
        assert page.title() != "mal"
        assert page.evaluate("document.documentElement.scrollWidth") <= width, name
        assert page.evaluate("getComputedStyle(document.body).maxWidth") != "none", name
        background = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (background == "rgb(255, 255, 255)") is (scheme == "light"), name
        page.context.close()


def test_charts_have_a_name_a_description_and_a_size(browser, pages):
    page, _, _ = open_page(browser, pages["entero"], 1100, "light")
    charts = page.get_by_role("img").all()
    assert len(charts) == 6  # loss, bits, tasks, speed, words, the card's own
    for chart in charts:
        box = chart.bounding_box()
        assert box["width"] > 90
        assert box["height"] > 20
    assert page.get_by_role("img", name="Pérdida de entrenamiento").count() == 1
    page.context.close()


def test_a_script_would_be_stopped_by_the_policy(browser, pages, tmp_path):
    """The net below the escaping: the same page with a live script in it."""
    html = pages["entero"].read_text(encoding="utf-8")
    bad = tmp_path / "malo.html"
    bad.write_text(html.replace("</body>", '<script>document.title="mal"</script></body>'))
    page, heard, _ = open_page(browser, bad, 1100, "light")
    assert page.title() != "mal"
    assert any("Content Security Policy" in line for line in heard)
    page.context.close()


def test_it_prints(browser, pages, tmp_path):
    page, _, _ = open_page(browser, pages["entero"], 1100, "dark")
    paper = page.pdf(format="A4")
    assert paper.startswith(b"%PDF")
    assert (
        2
        <= paper.count(b"/Type /Page\n")
        + paper.count(b"/Type /Page ")
        + paper.count(b"/Type/Page/")
        <= 12
    )
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.body).color") == "rgb(0, 0, 0)"
    page.context.close()
