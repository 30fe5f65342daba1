"""Markdown that streams: the same HTML as the whole, and inert."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest

from elchat.web.markdown import Document, close_inline, render
from tests.e2e.xss import XSS

SAFE_TAGS = {
    "p", "br", "hr", "em", "strong", "s", "code", "pre", "blockquote", "ul", "ol", "li", "h1", "h2",
    "h3", "h4", "h5", "h6", "a", "table", "thead", "tbody", "tr", "th", "td", "div", "span",
    "button",
}  # fmt: skip
SAFE_ATTRIBUTES = {"class", "href", "title", "rel", "target", "start", "tabindex", "type"}


class Inspector(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, list[tuple[str, str | None]]]] = []

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, attrs))


@pytest.mark.parametrize("payload", XSS)
@pytest.mark.parametrize(
    "around", ["{}", "- {}", "> {}", "| {} | b |\n|--|--|\n| c | d |", "**{}**"]
)
def test_nothing_a_model_writes_can_act(payload: str, around: str):
    document = Document()
    for char in around.format(payload):
        document.push(char)
        for html in document.blocks:
            assert_inert(html)
    document.finish()
    for html in document.blocks:
        assert_inert(html)


def assert_inert(html: str) -> None:
    inspector = Inspector()
    inspector.feed(html)
    for tag, attributes in inspector.found:
        assert tag in SAFE_TAGS, html
        for name, value in attributes:
            assert name in SAFE_ATTRIBUTES, html
            if name == "href":
                assert re.match(r"(https?://|mailto:)", value or "", re.IGNORECASE), html
                assert ("rel", "noopener noreferrer nofollow") in attributes


def test_pictures_become_links():
    [html] = render("![Un gato](https://a.es/gato.png)")
    assert "<img" not in html
    assert ">imagen: Un gato</a>" in html


def test_code_is_coloured_once_it_is_whole():
    document = Document()
    document.push("```python\ndef f():\n")
    assert '<span class="k">' not in document.blocks[0]
    document.push("    pass\n```\n\nFin.\n")
    assert '<span class="k">def</span>' in document.blocks[0]
    assert render("```lengua-que-no-existe\na < b\n```")[0].count("&lt;") == 1


def test_alignment_survives_without_styles():
    [html] = render("| a | b |\n|:-:|--:|\n| 1 | 2 |")
    assert 'class="centro"' in html
    assert 'class="derecha"' in html
    assert "style" not in html


@pytest.mark.parametrize(
    ("typed", "shown"),
    [
        ("Es **muy", "Es **muy**"),
        ("Es *muy", "Es *muy*"),
        ("Mira [esto](http://a", "Mira esto"),
        ("Mira [est", "Mira est"),
        ("Una ![fo", "Una fo"),
        ("El `códi", "El `códi`"),
        ("2 * 3 * 4", "2 * 3 * 4"),
        ("**a** y **", "**a** y "),
        ("ya **está**.", "ya **está**."),
        ("", ""),
        ("*", ""),
    ],
)
def test_half_typed_marks_are_closed_or_hidden(typed: str, shown: str):
    assert close_inline(typed).strip() == shown.strip()


def test_a_heading_that_was_not_one():
    document = Document()
    for piece in ("Uno\n", "#", "hola\n\nfin"):
        document.push(piece)
    assert document.blocks[0] == "<p>Uno\n#hola</p>\n"


def test_a_sealed_block_is_told_once():
    document = Document()
    sealed: list[int] = []
    for char in "Uno.\n\nDos.\n\nTres.\n\n- a\n- b\n\nCuatro.\n":
        sealed += [change.i for change in document.push(char) if change.is_sealed]
    assert sealed == [0, 1, 2, 3]
    assert document.finish() == []


@pytest.mark.parametrize("text", ["[" * 20_000, "*a " * 10_000, ">" * 3000, "![" * 10_000])
def test_hostile_markdown_ends(text: str):
    assert render(text)
