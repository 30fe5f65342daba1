r"""Write src/tables.rs: the character classes and the NFC data that `tokenizers` uses.

    python rustbpe/tools/make_tables.py [--check]

`tokenizers` asks three places what a character is: Oniguruma (`\p{L}`, `\p{N}`, `\s`), Rust's
standard library (`Digits`: char::is_numeric) and a Rust crate (NFC), each with a Unicode version of
its own. So the tables are read out of the installed `tokenizers`, code point by code point.
`--check` writes nothing and fails if the committed file is out of date.
"""

from __future__ import annotations

import argparse
import functools
import sys
import unicodedata
from collections.abc import Callable, Collection, Iterable
from importlib import metadata
from pathlib import Path

from tokenizers import Regex, normalizers, pre_tokenizers

TARGET = Path(__file__).parents[1] / "src" / "tables.rs"
LETTER, NUMBER, SPACE = 1, 2, 3
CODES = [code for code in range(0x110000) if not 0xD800 <= code < 0xE000]
HANGUL = range(0xAC00, 0xD7A4)
# A letter or a mark that each version was the first to have.
AGES = {"8.0": 0xFE2E, "9.0": 0x1E000, "10.0": 0x11D42}
AGES |= {"11.0": 0x8D3, "12.0": 0x1E130, "13.0": 0x1ABF, "14.0": 0x898, "15.0": 0x1E08F}
AGES |= {"16.0": 0x105C0, "17.0": 0x11DE0}


def main() -> int:
    """Probe, compare and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    source = render()
    if not arguments.check:
        TARGET.write_text(source, encoding="utf-8")
        return 0
    if TARGET.read_text(encoding="utf-8") != source:
        print("src/tables.rs no es lo que dice tokenizers", file=sys.stderr)
        return 1
    return 0


def render() -> str:
    """The whole Rust file."""
    letters, numbers, spaces = (matched(rf"\p{{{c}}}") for c in ("L", "N", "White_Space"))
    if spaces != matched(r"\s"):
        raise SystemExit(r"\s no es White_Space")
    digits = digit_codes()
    if not numbers <= digits or (digits & (letters | spaces)):
        raise SystemExit("Digits no contiene a \\p{N}, o se cruza con otra clase")
    classes = dict.fromkeys(letters, LETTER) | dict.fromkeys(numbers, NUMBER)
    classes |= dict.fromkeys(spaces, SPACE)
    decomposed, composed, combining, suspects = nfc_data()
    class_index, class_blocks = blocks(lambda code: classes.get(code, 0), bits=2)
    suspect_index, suspect_blocks = blocks(lambda code: int(code in suspects), bits=1)
    starts = [0]
    for chars in decomposed.values():
        starts.append(starts[-1] + len(chars))
    parts = [
        "//! Made by tools/make_tables.py; do not edit.",
        "//!",
        f"//! Read from tokenizers {metadata.version('tokenizers')}: its regular expressions know"
        f" Unicode {version_of(letters)},",
        f"//! its Digits Unicode {version_of(digits)}, its NFC Unicode {version_of(combining)}.",
        "",
        array("CLASS_INDEX", "u16", class_index),
        array("CLASS_BLOCKS", "[u64; 4]", class_blocks),
        array("EXTRA_DIGITS", "u32", sorted(digits - numbers)),
        array("SUSPECT_INDEX", "u16", suspect_index),
        array("SUSPECT_BLOCKS", "[u64; 2]", suspect_blocks),
        array("DECOMPOSED_KEYS", "u32", decomposed),
        array("DECOMPOSED_STARTS", "u16", starts),
        array("DECOMPOSED_CHARS", "u32", [c for chars in decomposed.values() for c in chars]),
        array("COMPOSED", "(u64, u32)", sorted((a << 32 | b, c) for (a, b), c in composed.items())),
        array("COMBINING", "(u32, u32, u8)", ranges(combining)),
    ]
    return "\n".join(parts)


def matched(pattern: str) -> set[int]:
    """Code points that a regular expression of `tokenizers` matches."""
    return removed(pre_tokenizers.Split(Regex(pattern), "removed"))


def removed(splitter: pre_tokenizers.PreTokenizer) -> set[int]:
    text = "".join(map(chr, CODES))
    left = [False] * len(CODES)
    for _, (start, end) in splitter.pre_tokenize_str(text):
        left[start:end] = [True] * (end - start)
    return {code for code, stays in zip(CODES, left, strict=True) if not stays}


def digit_codes() -> set[int]:
    """Code points that Digits cuts off on their own."""
    digits = pre_tokenizers.Digits(individual_digits=True)
    pieces = digits.pre_tokenize_str("".join(f"a{chr(code)}a" for code in CODES))
    alone = {piece for piece, _ in pieces if len(piece) == 1}
    return {ord(char) for char in alone - {"a"}}


def nfc_data() -> tuple[dict[int, list[int]], dict[tuple[int, int], int], dict[int, int], set[int]]:
    """Decompositions, primary composites, combining classes, and what NFC may change."""
    nfc, nfd = normalizers.NFC().normalize_str, normalizers.NFD().normalize_str
    decomposed = {}
    for code in CODES:
        if code not in HANGUL and (chars := [ord(c) for c in nfd(chr(code))]) != [code]:
            decomposed[code] = chars
    composed = {}
    for code in decomposed:
        if nfc(chr(code)) != chr(code):
            continue
        first, second = (int(c, 16) for c in unicodedata.decomposition(chr(code)).split())
        if nfc(chr(first) + chr(second)) != chr(code):
            raise SystemExit(f"U+{code:04X} no se compone de su descomposición")
        composed[first, second] = code
    combining = {code: v for code in CODES if (v := combining_class(chr(code)))}
    suspects = {code for code in CODES if nfc(chr(code)) != chr(code)} | set(combining)
    suspects |= {second for _, second in composed} | set(range(0x1161, 0x1176))
    suspects |= set(range(0x11A8, 0x11C3))
    return decomposed, composed, combining, suspects


def combining_class(char: str) -> int:
    """The class `tokenizers` gives a character, told by how it is ordered among the witnesses."""
    if not is_ordered(char):
        return 0
    for value, witness in witnesses().items():
        if char == witness or not (moves(witness, char) or moves(char, witness)):
            return value
    raise SystemExit(f"U+{ord(char):04X} tiene una clase de combinación que no se conoce")


@functools.cache
def witnesses() -> dict[int, str]:
    """One mark of each combining class that `tokenizers` knows."""
    found: dict[int, str] = {}
    for char in map(chr, range(0x300, 0x20000)):
        value = unicodedata.combining(char)
        if value and value not in found and is_ordered(char):
            found[value] = char
    return dict(sorted(found.items()))


def is_ordered(char: str) -> bool:
    """Whether its class is not 0; a character with a decomposition is never ordered itself."""
    above, below = "\u0300", "\u0316"  # classes 230 and 220
    is_whole = normalizers.NFD().normalize_str(char) == char
    return is_whole and (moves(above, char) or moves(char, below))


def moves(first: str, second: str) -> bool:
    """Whether canonical ordering swaps two marks."""
    return normalizers.NFD().normalize_str("a" + first + second) == "a" + second + first


def version_of(codes: Collection[int]) -> str:
    """The newest Unicode version whose witness is there."""
    return [version for version, code in AGES.items() if code in codes][-1]


def blocks(value_of: Callable[[int], int], *, bits: int) -> tuple[list[int], list[str]]:
    """A two-level table: block number of every 128 code points, and the distinct blocks."""
    known: dict[str, int] = {}
    index = []
    per_word = 64 // bits
    for base in range(0, 0x110000, 128):
        words = [
            sum(value_of(start + k) << (k * bits) for k in range(per_word))
            for start in range(base, base + 128, per_word)
        ]
        block = "[" + ", ".join(f"{word:#x}" for word in words) + "]"
        index.append(known.setdefault(block, len(known)))
    while index[-1] == index[-2]:
        index.pop()
    return index, list(known)


def ranges(values: dict[int, int]) -> list[tuple[int, int, int]]:
    """Runs of consecutive code points with the same value."""
    found: list[tuple[int, int, int]] = []
    for code, value in sorted(values.items()):
        if found and found[-1][1] == code - 1 and found[-1][2] == value:
            found[-1] = (found[-1][0], code, value)
        else:
            found.append((code, code, value))
    return found


def array(name: str, kind: str, items: Iterable[object]) -> str:
    values = [str(item) for item in items]
    lines, line = [], ""
    for value in values:
        if len(line) + len(value) > 90:
            lines.append(line)
            line = ""
        line += f" {value},"
    lines.append(line)
    body = "\n".join(f"   {line}" for line in lines)
    return f"#[rustfmt::skip]\npub static {name}: [{kind}; {len(values)}] = [\n{body}\n];\n"


if __name__ == "__main__":
    sys.exit(main())
