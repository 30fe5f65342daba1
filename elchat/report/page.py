"""A self-contained HTML page: escaped text, one style sheet, no script, nothing from outside.

Every function returns markup made of escaped parts; only `page`, `section` and their like take
markup, and it must come from here or from `elchat.plots`.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from html import escape as escape

from elchat.errors import DataError

STYLE = """
:root { color-scheme: light dark; --ink: #1d2430; --soft: #5b6675; --line: #d5dae1;
  --paper: #ffffff; --panel: #f4f6f8; --good: #00694e; --bad: #a8320a; --open: #5c5200; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e8ee; --soft: #a3adba; --line: #3a4350;
  --paper: #14181e; --panel: #1d232b; --good: #58c9a4; --bad: #ff9468; --open: #d9c65a; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem 1.25rem 4rem; max-width: 66rem; color: var(--ink);
  background: var(--paper); font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2.2rem 0 .5rem; padding-top: .6rem;
  border-top: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.1rem 0 .3rem; }
p { margin: .4rem 0; max-width: 46rem; }
.soft { color: var(--soft); }
.verdict { margin: 1.2rem 0; padding: .9rem 1.1rem; background: var(--panel);
  border-left: 6px solid var(--open); }
.verdict.mejor { border-color: var(--good); } .verdict.peor { border-color: var(--bad); }
.verdict strong { font-size: 1.25rem; display: block; margin-bottom: .3rem; }
.verdict ul { margin: .3rem 0; padding-left: 1.2rem; }
.warning { border-left: 6px solid var(--bad); padding: .2rem 1rem; background: var(--panel); }
.scroll { overflow-x: auto; max-width: 100%; }
table { border-collapse: collapse; margin: .6rem 0; font-variant-numeric: tabular-nums;
  font-size: .93rem; }
th, td { padding: .28rem .8rem .28rem 0; text-align: left; vertical-align: top;
  border-bottom: 1px solid var(--line); }
th { color: var(--soft); font-weight: 600; }
th.n, td.n { text-align: right; white-space: nowrap; padding-left: .4rem; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr));
  gap: 1rem 2rem; margin: .8rem 0; }
figure { margin: 0; } figcaption { font-weight: 600; font-size: .95rem; margin-bottom: .2rem; }
svg { width: 100%; height: auto; max-width: 34rem; }
figure img { max-width: 100%; background: #fff; padding: .3rem; }
.sample { margin: 1rem 0 1.4rem; }
.prompt { font-weight: 600; }
.replies { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 15rem), 1fr));
  gap: .7rem; margin-top: .4rem; }
.replies div { background: var(--panel); padding: .5rem .7rem; overflow-wrap: anywhere;
  white-space: pre-wrap; }
.replies b { display: block; color: var(--soft); font-size: .85rem; }
pre { background: var(--panel); padding: .7rem; font-size: .8rem; white-space: pre-wrap;
  overflow-wrap: anywhere; }
code { font-family: ui-monospace, monospace; font-size: .86em; overflow-wrap: anywhere; }
summary { cursor: pointer; }
.tokens { line-height: 2; overflow-wrap: anywhere; }
.tokens span { padding: .12em .1em; border-radius: .2em; white-space: pre-wrap; }
.tokens .a { background: color-mix(in srgb, #0072b2 18%, transparent); }
.tokens .b { background: color-mix(in srgb, #d55e00 20%, transparent); }
.tokens .x { background: none; outline: 1px solid var(--line); color: var(--soft);
  font-size: .8em; }
.tokens .t { text-decoration: underline 2px; text-underline-offset: .25em; font-weight: 600; }
@media (prefers-color-scheme: dark) { svg .s0 { stroke: #56b4e9 } svg .s1 { stroke: #ff8c4a }
  svg .s2 { stroke: #3fc9a0 } svg .s3 { stroke: #e58fd6 }
  svg :is(circle, rect, polygon).s0 { fill: #56b4e9 }
  svg :is(circle, rect, polygon).s1 { fill: #ff8c4a }
  svg :is(circle, rect, polygon).s2 { fill: #3fc9a0 }
  svg :is(circle, rect, polygon).s3 { fill: #e58fd6 } }
@media print { :root { color-scheme: light; --ink: #000; --soft: #333; --line: #999;
    --paper: #fff; --panel: #fff; }
  body { max-width: none; padding: 0 1px; font-size: 10.5pt; }
  .verdict, .warning, .replies div, pre { border: 1px solid #999; }
  .verdict { border-left-width: 6px; }
  .charts { grid-template-columns: 1fr 1fr; } .scroll { overflow: visible; }
  .replies { display: flex; } .replies div { flex: 1 1 0; min-width: 0; }
  figure, tr, .sample, .verdict { break-inside: avoid; } h2 { break-after: avoid; }
  details::details-content { content-visibility: visible; display: block; }
  pre { font-size: 7.5pt; } table { font-size: 9pt; } @page { margin: 16mm 14mm; } }
"""


def page(title: str, body: Sequence[str]) -> str:
    """The whole document. The policy lets in this style sheet and images inside the page."""
    digest = base64.b64encode(hashlib.sha256(STYLE.encode("utf-8")).digest()).decode("ascii")
    policy = (
        f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:; base-uri 'none'; "
        "form-action 'none'"
    )
    return (
        '<!doctype html>\n<html lang="es">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="generator" content="elchat">\n<link rel="icon" href="data:,">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(filter(None, body))
        + "\n</body>\n</html>\n"
    )


def section(title: str, *parts: str) -> str:
    """A titled section of markup; nothing at all if it has no parts."""
    body = "\n".join(filter(None, parts))
    return f"<section>\n<h2>{escape(title)}</h2>\n{body}\n</section>" if body else ""


def paragraph(text: str, *, css: str = "") -> str:
    """A paragraph of plain text."""
    attribute = f' class="{css}"' if css else ""
    return f"<p{attribute}>{escape(text)}</p>"


def verdict_box(headline: str, points: Sequence[str], *, css: str = "", advice: str = "") -> str:
    """The first thing on a page: a sentence, what it rests on, what to do."""
    last = paragraph(advice) if advice else ""
    return (
        f'<section class="verdict {css}" aria-label="Veredicto"><strong>{escape(headline)}</strong>'
        f"{bullets(points)}{last}</section>"
    )


def bullets(lines: Sequence[str]) -> str:
    """A list of plain sentences."""
    return "<ul>" + "".join(f"<li>{escape(line)}</li>" for line in lines) + "</ul>" if lines else ""


def table(heads: Sequence[str], rows: Sequence[Sequence[str]], *, n_text: int) -> str:
    """Plain cells; the first `n_text` columns are text, the others figures to the right."""
    if not rows:
        return ""

    def line(cells: Sequence[str], tag: str) -> str:
        done = [
            f"<{tag}{' class=n' if i >= n_text else ''}{' scope=col' if tag == 'th' else ''}>"
            f"{escape(cell)}</{tag}>"
            for i, cell in enumerate(cells)
        ]
        return "<tr>" + "".join(done) + "</tr>"

    body = "\n".join(line(row, "td") for row in rows)
    return (
        f'<div class="scroll"><table>\n<thead>{line(heads, "th")}</thead>\n<tbody>\n{body}\n'
        "</tbody></table></div>"
    )


def charts(*drawn: tuple[str, str]) -> str:
    """Figures side by side: (caption, SVG made by elchat.plots)."""
    figures = [
        f"<figure><figcaption>{escape(caption)}</figcaption>{svg}</figure>"
        for caption, svg in drawn
        if svg
    ]
    return '<div class="charts">' + "".join(figures) + "</div>" if figures else ""


def foreign_svg(caption: str, alt: str, svg: str) -> str:
    """A drawing from a file: shown as an image, where no script of its own can run."""
    data = base64.b64encode(svg.encode("utf-8")).decode("ascii")
    return (
        f"<figure><figcaption>{escape(caption)}</figcaption>"
        f'<img alt="{escape(alt)}" src="data:image/svg+xml;base64,{data}"></figure>'
    )


def folded(summary: str, text: str) -> str:
    """Long plain text behind a line; printed whole."""
    return f"<details><summary>{escape(summary)}</summary><pre>{escape(text)}</pre></details>"


def check_text(text: str) -> str:
    """Refuse to write what is not Unicode, before a file is half written.

    Raises:
        DataError: lone surrogates.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise DataError("El informe contiene texto que no es Unicode válido.") from None
    return text
