"""Markdown from a model to HTML that can do nothing, piece by piece while it is being written.

Order matters: markdown-it renders (raw HTML off), and nh3 cleans what comes out, last. Pictures
become links: loading one would tell its server that it was read, and what the address carries.

A document is a list of top-level blocks. While text streams, every block but the last is sealed
and never parsed again; only the tail is. A reference defined after its use can still change a
sealed block, so `finish` renders the whole once more and reports the blocks that differ.
"""

from __future__ import annotations

import copy
import functools
import re
from collections.abc import MutableMapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import nh3
from markdown_it import MarkdownIt
from markdown_it.renderer import RendererHTML
from markdown_it.token import Token
from markdown_it.utils import OptionsDict
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import get_lexer_by_name
from pygments.token import STANDARD_TYPES
from pygments.util import ClassNotFound

MAX_HIGHLIGHT_CHARS = 50_000
TAGS = {
    "p", "br", "hr", "em", "strong", "s", "code", "pre", "blockquote", "ul", "ol", "li", "h1", "h2",
    "h3", "h4", "h5", "h6", "a", "table", "thead", "tbody", "tr", "th", "td", "div", "span",
    "button",
}  # fmt: skip
CLASSES = {
    "span": {name for name in STANDARD_TYPES.values() if name} | {"lengua"},
    "div": {"codigo", "codigo-cabecera", "tabla"},
    "button": {"copiar"},
    "th": {"centro", "derecha"},
    "td": {"centro", "derecha"},
}
CLEANER = nh3.Cleaner(
    tags=TAGS,
    attributes={"a": {"href", "title"}, "ol": {"start"}},
    tag_attribute_values={
        "pre": {"tabindex": {"0"}},
        "div": {"tabindex": {"0"}},
        "button": {"type": {"button"}},
    },
    allowed_classes=CLASSES,
    url_schemes={"http", "https", "mailto"},
    url_relative="deny",
    link_rel="noopener noreferrer nofollow",
    set_tag_attribute_values={"a": {"target": "_blank"}},
)
ALIGNMENTS = {"text-align:center": "centro", "text-align:right": "derecha"}


@dataclass(frozen=True)
class Change:
    """Block number `i` now reads `html`; a sealed one will not change while text streams."""

    i: int
    html: str
    is_sealed: bool


class Document:
    """Text that grows, and its HTML."""

    def __init__(self) -> None:
        self.text = ""  # lines end in \n, whatever they ended in
        self._held = ""  # a \r that may be half of a \r\n
        self._tail_start = 0
        self._env: dict[str, Any] = {}
        self._html: list[str] = []  # of the sealed blocks
        self._tail: list[str] = []

    @property
    def blocks(self) -> list[str]:
        """HTML of every block so far."""
        return [*self._html, *self._tail]

    def push(self, text: str) -> list[Change]:
        """Add text; what changed, in order."""
        text = self._held + text
        self._held = "\r" if text.endswith("\r") else ""
        self.text += _normalise(text.removesuffix("\r"))
        n_before, tail_before = len(self._html), self._tail
        self._seal()
        self._tail = self._render_tail()
        changes = [Change(i, self._html[i], True) for i in range(n_before, len(self._html))]
        if changes or self._tail != tail_before:
            changes += [
                Change(len(self._html) + i, html, False) for i, html in enumerate(self._tail)
            ]
        return changes

    def finish(self) -> list[Change]:
        """Render the whole; the blocks that differ from what was shown."""
        self.text += _normalise(self._held)
        self._held = ""
        shown, self._html, self._tail = self.blocks, render(self.text), []
        return [
            Change(i, html, True)
            for i, html in enumerate(self._html)
            if i >= len(shown) or shown[i] != html
        ]

    def _seal(self) -> None:
        """Seal every block but the last of those whose first line is whole.

        A line still being written may not be what it seems: `#` is a heading until `#hola` shows
        that it was part of the paragraph above.
        """
        whole_lines = self.text.rfind("\n", self._tail_start) + 1
        source = self.text[self._tail_start : whole_lines]
        if not source:
            return
        groups = _groups(_parse(source, _copy(self._env)))
        starts = [group[0].map[0] for group in groups if group[0].map]
        if len(starts) < 2:
            return
        offset = _line_offset(source, starts[-1])
        sealed = source[:offset]
        self._html += _render_groups(_parse(sealed, self._env), self._env)
        self._tail_start += offset

    def _render_tail(self) -> list[str]:
        source = self.text[self._tail_start :]
        if not source.strip():
            return []
        env = _copy(self._env)
        tokens = _parse(source, env)
        groups = _groups(tokens)
        if groups and groups[-1][-1].type == "paragraph_close":
            tokens = _parse(close_inline(source), env)
        return _render_groups(tokens, env, is_final=False)


def render(text: str) -> list[str]:
    """HTML of each top-level block of a whole document."""
    env: dict[str, Any] = {}
    return _render_groups(_parse(text, env), env)


def close_inline(source: str) -> str:
    """Hide or close the half-typed marks at the end of a paragraph.

    Example: "Es **muy" -> "Es **muy**"; "Mira [esto](http://a" -> "Mira esto".
    """
    source = re.sub(r"!?\[([^\[\]\n]*)(\]\([^()\s]*)?$", r"\1", source)
    source = re.sub(r"(?:^|(?<=\s))[*_~`]{1,3}$", "", source)
    line_start = source.rfind("\n\n") + 1
    paragraph = source[line_start:]
    if paragraph.count("`") % 2:
        return source + "`"
    plain = re.sub(r"`[^`]*`", "", paragraph)
    marks = [mark for mark in ("**", "~~") if plain.count(mark) % 2]
    stripped = plain.replace("**", "")
    if len(re.findall(r"(?<!\s)\*|\*(?!\s)", stripped)) % 2:
        marks.append("*")
    body = source.rstrip("*~") if marks and source.endswith(("*", "~")) else source
    if body != source:
        return close_inline(body) if body else source
    return source.rstrip() + "".join(reversed(marks)) if marks else source


def _normalise(text: str) -> str:
    """As markdown-it reads lines, so that its line numbers are those of the text."""
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _line_offset(source: str, line: int) -> int:
    offset = 0
    for _ in range(line):
        offset = source.index("\n", offset) + 1
    return offset


def _copy(env: dict[str, Any]) -> dict[str, Any]:
    return copy.deepcopy(env) if env else {}


def _parse(source: str, env: dict[str, Any]) -> list[Token]:
    return _parser().parse(source, env)


def _groups(tokens: Sequence[Token]) -> list[list[Token]]:
    """Tokens of each top-level block."""
    groups: list[list[Token]] = []
    depth = 0
    for token in tokens:
        if depth == 0:
            groups.append([])
        groups[-1].append(token)
        depth += token.nesting
    return groups


def _render_groups(
    tokens: Sequence[Token], env: dict[str, Any], *, is_final: bool = True
) -> list[str]:
    parser = _parser()
    groups = _groups(tokens)
    html = []
    for index, group in enumerate(groups):
        is_open = not is_final and index == len(groups) - 1
        env_of_block = {**env, "is_open": is_open}
        html.append(CLEANER.clean(parser.renderer.render(group, parser.options, env_of_block)))
    return html


class _Renderer(RendererHTML):
    """Our markup for code, tables and pictures."""

    def fence(
        self,
        tokens: Sequence[Token],
        idx: int,
        options: OptionsDict,
        env: MutableMapping[str, Any],
    ) -> str:
        token = tokens[idx]
        language = token.info.strip().split(maxsplit=1)[0][:30] if token.info.strip() else ""
        code = token.content
        body = escape(code) if env.get("is_open") else _highlight(code, language)
        return (
            '<div class="codigo"><div class="codigo-cabecera">'
            f'<span class="lengua">{escape(language or "texto")}</span>'
            '<button type="button" class="copiar">Copiar</button></div>'
            f'<pre tabindex="0"><code>{body}</code></pre></div>\n'
        )

    def code_block(
        self,
        tokens: Sequence[Token],
        idx: int,
        options: OptionsDict,
        env: MutableMapping[str, Any],
    ) -> str:
        return self.fence(tokens, idx, options, env)

    def image(
        self,
        tokens: Sequence[Token],
        idx: int,
        options: OptionsDict,
        env: MutableMapping[str, Any],
    ) -> str:
        token = tokens[idx]
        name = self.renderInlineAsText(token.children or [], options, env)
        source = escape(str(token.attrs.get("src", "")), quote=True)
        return f'<a href="{source}">imagen: {escape(name or "sin título")}</a>'

    def table_open(self, *_: Any) -> str:
        return '<div class="tabla" tabindex="0"><table>\n'

    def table_close(self, *_: Any) -> str:
        return "</table></div>\n"

    def th_open(self, tokens: Sequence[Token], idx: int, *_: Any) -> str:
        return _cell(tokens[idx])

    def td_open(self, tokens: Sequence[Token], idx: int, *_: Any) -> str:
        return _cell(tokens[idx])


def _cell(token: Token) -> str:
    """Alignment as a class: the page allows no style attributes."""
    name = ALIGNMENTS.get(str(token.attrs.get("style", "")))
    return f'<{token.tag} class="{name}">' if name else f"<{token.tag}>"


def _highlight(code: str, language: str) -> str:
    if not language or len(code) > MAX_HIGHLIGHT_CHARS:
        return escape(code)
    try:
        lexer = get_lexer_by_name(language, stripnl=False, ensurenl=False)
    except ClassNotFound:
        return escape(code)
    return highlight(code, lexer, HtmlFormatter(nowrap=True))


@functools.cache
def _parser() -> MarkdownIt:
    parser = MarkdownIt("commonmark", {"html": False}, renderer_cls=_Renderer)
    return parser.enable(["table", "strikethrough"])
