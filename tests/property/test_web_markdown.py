"""Any document, cut anywhere: no sealed block is ever wrong, and the end is the whole."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from elchat.web.markdown import Document, render

PIECES = st.sampled_from(
    [
        "# t\n", "uno dos\n", "\n", "- a\n", "  - b\n", "1. x\n", "```py\nx=1\n```\n", "> q\n",
        "---\n", "===\n", "| a | b |\n|--|--|\n| 1 | 2 |\n", "    code\n", "**b** *i* `c`\n", "#",
        "*", "~~~\nz\n~~~\n", "<b>x</b>\n", "\t", "é🙂", "[x](http://a.es) ", "![i](http://b.es)",
        "- [ ] t\n", "~~s~~", "\\", "&amp;", "```", "`",
        "\r", "\r\n", "uno\r\n",
    ]
)  # fmt: skip
DOCUMENTS = st.lists(PIECES | st.text(max_size=8), max_size=30).map("".join)


@settings(max_examples=150, deadline=None)
@given(text=DOCUMENTS, cuts=st.lists(st.integers(1, 9), min_size=1, max_size=20))
def test_a_stream_joins_to_the_whole(text: str, cuts: list[int]):
    document = Document()
    shown: dict[int, str] = {}
    sealed: dict[int, str] = {}
    start = turn = 0
    while start < len(text):
        size = cuts[turn % len(cuts)]
        for change in document.push(text[start : start + size]):
            assert change.i not in sealed
            shown[change.i] = change.html
            if change.is_sealed:
                sealed[change.i] = change.html
        start, turn = start + size, turn + 1
    whole = render(text)
    assert {i: whole[i] for i in sealed} == sealed
    for change in document.finish():
        shown[change.i] = change.html
    assert [shown[i] for i in range(len(whole))] == whole


@settings(max_examples=60, deadline=None)
@given(before=DOCUMENTS, name=st.sampled_from(["a", "b"]))
def test_a_reference_defined_late_is_resolved_at_the_end(before: str, name: str):
    text = f"[{name}]\n\n{before}\n\n[{name}]: https://x.es\n"
    document = Document()
    for char in text:
        document.push(char)
    document.finish()
    assert document.blocks == render(text)
