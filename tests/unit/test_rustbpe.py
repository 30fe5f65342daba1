"""rustbpe against `tokenizers`, against a slow Python reference, and against bad input."""

from __future__ import annotations

import ctypes
import gc
import gzip
import itertools
import json
import os
import shutil
import subprocess
import sys
import time
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import regex
import tokenizers
from tokenizers import normalizers

import elchat_bpe
from elchat.errors import TokenizerError
from elchat.tokenizer import Tokenizer
from elchat_bpe import BpeError, Encoder, UnsupportedError, arrays, library, vocabulary
from tests import toys
from tests.rustbpe_reference import (
    HAS_RUST,
    ROOT,
    SCANNERS,
    TRICKY,
    hf_pre_tokenizer,
    needs_rust,
    reference_pieces,
)


def raw_reference(family: str) -> tokenizers.Tokenizer:
    spec = json.loads(toys.tokenizer_json(family))
    return tokenizers.Tokenizer.from_str(
        json.dumps(dict(spec, added_tokens=[], post_processor=None))
    )


def rust_ids(encoder: Encoder, text: str) -> list[int]:
    return encoder.encode_batch([text], threads=1)[0].tolist()


@pytest.fixture(params=toys.FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def encoder(family: str) -> Encoder:
    return Encoder.from_spec(json.loads(toys.tokenizer_json(family)))


# --- pre-tokenizers ------------------------------------------------------------------------------


@needs_rust
@pytest.mark.parametrize("name", SCANNERS)
@pytest.mark.parametrize("text", TRICKY)
def test_pieces_equal_the_regular_expression(name: str, text: str) -> None:
    pieces = elchat_bpe.pieces(SCANNERS[name], text)
    assert pieces == reference_pieces(name, text)
    assert "".join(pieces) == text


@needs_rust
@pytest.mark.parametrize("name", SCANNERS)
@pytest.mark.parametrize("frame", ["{0}", "a{0}b ", " {0} {0}", "'{0}1", "\n{0}.{0}\r\n"])
def test_every_code_point_cuts_as_in_tokenizers(name: str, frame: str) -> None:
    reference = hf_pre_tokenizer(name)
    codes = [code for code in range(0x110000) if not 0xD800 <= code < 0xE000]
    step = 1 if frame == "a{0}b " else 7  # every one once, a seventh of them in each other frame
    for start in range(0, len(codes), 40_000):
        text = "".join(frame.format(chr(code)) for code in codes[start : start + 40_000 : step])
        expected = [piece for piece, _ in reference.pre_tokenize_str(text)]
        assert elchat_bpe.pieces(SCANNERS[name], text) == expected


@needs_rust
def test_nfc_of_every_code_point_equals_tokenizers() -> None:
    nfc = normalizers.NFC().normalize_str
    codes = [code for code in range(0x110000) if not 0xD800 <= code < 0xE000]
    frames = ["{0} ", "e{0}\u0301 ", "a\u0323{0}\u0302 ", "\u1100{0}\u11a8 ", "\u0c46{0}"]
    for frame in frames:
        for start in range(0, len(codes), 100_000):
            text = "".join(frame.format(chr(code)) for code in codes[start : start + 100_000])
            assert elchat_bpe.normalize(text) == nfc(text)


@needs_rust
@pytest.mark.slow
def test_tables_are_those_of_the_installed_tokenizers() -> None:
    tool = ROOT / "rustbpe" / "tools" / "make_tables.py"
    subprocess.run([sys.executable, str(tool), "--check"], check=True)


# --- encode and decode ---------------------------------------------------------------------------


@needs_rust
@pytest.mark.parametrize("text", TRICKY)
def test_ids_equal_tokenizers(family: str, encoder: Encoder, text: str) -> None:
    ids = rust_ids(encoder, text)
    assert ids == raw_reference(family).encode(text).ids
    expected = unicodedata.normalize("NFC", text) if family == "qwen" else text
    assert encoder.decode(ids) == expected


def slow_bpe(spec: dict[str, Any], piece: bytes) -> list[int]:
    """The definition: while some pair merges, the one of lowest rank, leftmost first."""
    chars = vocabulary.byte_chars()
    vocab = spec["model"]["vocab"]
    ranks = {tuple(merge): rank for rank, merge in enumerate(spec["model"]["merges"])}
    word = [chars[byte] for byte in piece]
    if spec["model"].get("ignore_merges") and "".join(word) in vocab:
        return [vocab["".join(word)]]
    while True:
        pairs = [(ranks[p], k) for k, p in enumerate(itertools.pairwise(word)) if p in ranks]
        if not pairs:
            return [vocab[symbol] for symbol in word]
        k = min(pairs)[1]
        word[k : k + 2] = [word[k] + word[k + 1]]


@needs_rust
def test_ids_equal_the_slow_reference(family: str, encoder: Encoder) -> None:
    spec = json.loads(toys.tokenizer_json(family))
    name = {"smollm": "smollm2", "qwen": "qwen2", "llama": "llama3"}[family]
    for text in [*TRICKY, *toys.SENTENCES]:
        normal = unicodedata.normalize("NFC", text) if family == "qwen" else text
        pieces = reference_pieces(name, normal)
        expected = [i for piece in pieces for i in slow_bpe(spec, piece.encode())]
        assert rust_ids(encoder, text) == expected


@needs_rust
def test_batches_threads_and_offsets(encoder: Encoder) -> None:
    texts = [f"{a}{b} {k}" for k, a in enumerate(TRICKY * 300) for b in ("", "ñ")]
    ids, offsets = encoder.encode_batch(texts, threads=1)
    assert (ids.dtype, offsets.dtype) == (np.uint32, np.int64)
    assert len(offsets) == len(texts) + 1
    for threads in (0, 2, 5):
        again = encoder.encode_batch(texts, threads=threads)
        np.testing.assert_array_equal(again[0], ids)
        np.testing.assert_array_equal(again[1], offsets)
    for k in range(0, len(texts), 97):
        assert ids[offsets[k] : offsets[k + 1]].tolist() == rust_ids(encoder, texts[k])
    empty_ids, empty_offsets = encoder.encode_batch([])
    assert (empty_ids.tolist(), empty_offsets.tolist()) == ([], [0])


@needs_rust
def test_long_texts_go_in_parts_and_come_out_whole(
    encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = ["".join(TRICKY * 9), "", *TRICKY, "a" * 900, "  \u2003 x" * 90, " ".join(TRICKY) * 5]
    whole = encoder.encode_batch(texts, threads=1)
    for limit in (1, 2, 7, 64, 300):
        monkeypatch.setattr(arrays, "GROUP_CHARS", limit)
        for one, other in zip(encoder.encode_batch(texts, threads=2), whole, strict=True):
            np.testing.assert_array_equal(one, other)
            assert one.dtype == other.dtype
    parts = [part for group, _ in arrays.groups(texts) for part in group]
    assert "".join(parts) == "".join(texts)
    assert len(parts) > len(texts)


MEMORY = """
import json, sys
sys.path[:0] = json.loads(sys.argv[1])
from elchat.hardware import peak_resident_bytes
from elchat_bpe import Encoder
encoder = Encoder.from_spec(json.load(open(sys.argv[2], encoding="utf-8")))
text = open(sys.argv[3], encoding="utf-8").read()
before = peak_resident_bytes()
ids, offsets = encoder.encode_batch([text], threads=2)
after = peak_resident_bytes()
print(json.dumps([before, after, len(ids)]))
"""


@needs_rust
@pytest.mark.skipif(sys.platform != "linux", reason="pico de memoria de Linux")
def test_encoding_a_long_text_takes_little_more_than_its_ids(tmp_path: Path) -> None:
    text, vocab = tmp_path / "largo.txt", tmp_path / "tokenizer.json"
    vocab.write_text(toys.tokenizer_json("llama"), encoding="utf-8")
    text.write_text("\n".join(toys.SENTENCES) * 50_000, encoding="utf-8")
    size = text.stat().st_size
    assert size > 20e6
    command = [sys.executable, "-c", MEMORY, json.dumps(sys.path), str(vocab), str(text)]
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    before, after, n_ids = json.loads(out)
    # the ids, the UTF-8 of a group, the caches and buffers of two threads
    assert after - before < 4 * n_ids + 60e6, (before, after, n_ids)


@needs_rust
def test_arrays_outlive_the_encoder() -> None:
    encoder = Encoder.from_spec(json.loads(toys.tokenizer_json("qwen")))
    ids, offsets = encoder.encode_batch(toys.SENTENCES)
    expected = ids.tolist()
    del encoder
    tail = ids[3:]
    del ids
    gc.collect()
    assert tail.tolist() == expected[3:]
    assert offsets[-1] == len(expected)


@needs_rust
def test_a_million_equal_characters(family: str, encoder: Encoder) -> None:
    for char in ("a", " ", "\n", "ñ", "-", "1"):
        start = time.perf_counter()
        ids = encoder.encode_batch([char * 1_000_000], threads=1)[0]
        assert time.perf_counter() - start < 20
        assert encoder.decode(ids) == char * 1_000_000


@needs_rust
def test_bytes_the_vocabulary_lacks_vanish_as_in_tokenizers() -> None:
    spec = json.loads(toys.tokenizer_json("smollm"))
    gone = vocabulary.byte_chars()[4]
    del spec["model"]["vocab"][gone]
    encoder = Encoder.from_spec(spec)
    reference = tokenizers.Tokenizer.from_str(json.dumps(spec))
    for text in ("\x04", "ni\x04ño\x04\x04s", " el\x04 niño"):
        assert rust_ids(encoder, text) == reference.encode(text).ids
    spec["model"]["unk_token"] = "a"
    with pytest.raises(UnsupportedError, match="unk_token"):
        Encoder.from_spec(spec)


@needs_rust
def test_special_tokens_only_when_allowed(family: str, encoder: Encoder) -> None:
    raw = tokenizers.Tokenizer.from_str(toys.tokenizer_json(family))
    names = list(encoder.special_ids)
    text = f"hola {names[0]}{names[1]} adiós {names[2]}"
    plain = encoder.encode_batch([text])[0]
    assert not set(plain.tolist()) & set(encoder.special_ids.values())
    ids, offsets = encoder.encode_batch(["", text, "x"], allowed_special=names)
    assert ids[offsets[1] : offsets[2]].tolist() == raw.encode(text, add_special_tokens=False).ids
    assert encoder.decode(ids[: offsets[2]]) == text
    some = encoder.encode_batch([text], allowed_special=names[:1])[0].tolist()
    assert set(some) & set(encoder.special_ids.values()) == {encoder.special_ids[names[0]]}
    with pytest.raises(BpeError, match="no existe"):
        encoder.encode_batch([text], allowed_special=["<no>"])


# --- bad input -----------------------------------------------------------------------------------


@needs_rust
@pytest.mark.parametrize("texts", [["a\ud800b"], ["hola", "\udfff"]])
def test_lone_surrogates(encoder: Encoder, texts: list[str]) -> None:
    with pytest.raises(BpeError, match="sustitutos"):
        encoder.encode_batch(texts)


@needs_rust
@pytest.mark.parametrize("texts", [[1], [None, "a"], 5])
def test_things_that_are_not_text(encoder: Encoder, texts: Any) -> None:
    with pytest.raises(BpeError, match="textos"):
        encoder.encode_batch(texts)


@needs_rust
@pytest.mark.parametrize("ids", [[-1], [10**6], [2**32], [1.5], ["a"]])
def test_ids_outside_the_vocabulary(encoder: Encoder, ids: Any) -> None:
    with pytest.raises(BpeError, match=r"no existe|enteros"):
        encoder.decode(ids)


def changed(**model: object) -> dict[str, Any]:
    spec = json.loads(toys.tokenizer_json("qwen"))
    spec["model"] |= model
    return spec


BROKEN = {
    "uniones": (changed(merges=None), "merges"),
    "unión ajena": (changed(merges=[["zz", "qq"]]), "no encaja"),
    "unión sin forma": (changed(merges=[["a"]]), "no encaja"),
    "id negativo": (changed(vocab={"a": -1}), "imposible"),
    "id de texto": (changed(vocab={"a": "1"}), "imposible"),
    "id enorme": (changed(vocab={"a": 2**40}), "imposible"),
    "vacío": (changed(vocab={}) | {"added_tokens": []}, "imposible"),
    "otro modelo": (changed(type="Unigram"), "no es BPE"),
    "prefijo": (changed(continuing_subword_prefix="##"), "continuing_subword_prefix"),
    "pre-tokenizador": (changed() | {"pre_tokenizer": {"type": "Whitespace"}}, "Whitespace"),
    "sin pre-tokenizador": (changed() | {"pre_tokenizer": None}, "pre-tokenizador"),
    "normalizador": (changed() | {"normalizer": {"type": "Lowercase"}}, "normalizador"),
}


@needs_rust
@pytest.mark.parametrize("case", BROKEN)
def test_bad_vocabularies(case: str) -> None:
    spec, message = BROKEN[case]
    with pytest.raises(BpeError, match=message):
        Encoder.from_spec(spec)


@needs_rust
def test_the_library_checks_for_itself() -> None:
    with pytest.raises(BpeError, match="nulo"):
        library.make("encoder_new", None)
    with pytest.raises(BpeError, match="escáner 9"):
        library.make("pieces", 9, b"", 0)
    with pytest.raises(BpeError, match="nulo"):
        library.call("encode_append", None, None, None, 0, 1, None)
    with pytest.raises(BpeError, match="nulo"):
        library.make("pieces", 0, None, 3)


def test_a_missing_or_foreign_library_says_why(tmp_path: Path) -> None:
    fake = tmp_path / library.NAMES[0]
    fake.write_bytes(b"\x7fELF no")
    with pytest.raises(BpeError, match="no se puede cargar"):
        library.load_from(fake)
    if not HAS_RUST:
        assert "cargo" in (elchat_bpe.why_not() or "")


@needs_rust
def test_another_version_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "ABI_VERSION", 99)
    with pytest.raises(BpeError, match="hace falta la 99"):
        library.load_from(library.find() or Path())


@needs_rust
def test_signatures_match_the_header() -> None:
    source = (ROOT / "rustbpe" / "src" / "ffi.rs").read_text(encoding="utf-8")
    declared = set(regex.findall(r'extern "C" fn elchat_bpe_(\w+)', source))
    known = {*library._SIGNATURES, *library._FREES, "abi_version", "last_error"}
    assert declared == known
    assert f"ABI_VERSION: u32 = {library.ABI_VERSION};" in source
    for name in known:
        assert getattr(library.load(), f"elchat_bpe_{name}")
    assert ctypes.sizeof(library.EncoderSpec) == 72


# --- behind elchat's own class -------------------------------------------------------------------


@needs_rust
def test_elchat_uses_it_and_can_be_told_not_to(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = toys.tokenizer_json(family)
    fast = Tokenizer.from_json(text)
    monkeypatch.setenv("ELCHAT_TOKENIZER", "tokenizers")
    slow = Tokenizer.from_json(text)
    assert (fast.backend, slow.backend) == ("rustbpe", "tokenizers")
    assert fast.encode_batch(TRICKY) == slow.encode_batch(TRICKY)
    for one, other in zip(fast.encode_arrays(TRICKY), slow.encode_arrays(TRICKY), strict=True):
        np.testing.assert_array_equal(one, other)
        assert one.dtype == other.dtype


def test_an_unknown_family_falls_back() -> None:
    spec = json.loads(toys.tokenizer_json("smollm"))
    spec["pre_tokenizer"]["pretokenizers"][0]["individual_digits"] = False
    tokenizer = Tokenizer.from_json(json.dumps(spec))
    assert tokenizer.backend == "tokenizers"
    assert tokenizer.decode(tokenizer.encode("año 1998")) == "año 1998"


def test_elchat_turns_its_errors_into_its_own() -> None:
    with pytest.raises(TokenizerError, match="Unicode"):
        toys.tokenizer("qwen").encode_arrays(["a\ud800"])


@pytest.mark.parametrize("name", ["smollm2", "qwen2_5", "llama3_1", "gpt2"])
@needs_rust
def test_real_vocabularies(name: str) -> None:
    path = toys.test_data("tokenizers", name, "tokenizer.json")
    encoder = Encoder.from_spec(json.loads(path.read_bytes()))
    spec = json.loads(path.read_bytes())
    spec |= {"added_tokens": [], "post_processor": None}
    reference = tokenizers.Tokenizer.from_str(json.dumps(spec))
    texts = list(TRICKY)
    for corpus in sorted(toys.test_data("corpus").glob("*.jsonl.gz")):
        with gzip.open(corpus, "rt", encoding="utf-8") as lines:
            texts += [json.loads(line)["text"] for line, _ in zip(lines, range(3), strict=False)]
    ids, offsets = encoder.encode_batch(texts)
    for k, text in enumerate(texts):
        assert ids[offsets[k] : offsets[k + 1]].tolist() == reference.encode(text).ids


def real_texts() -> Iterator[str]:
    """The whole corpus, and every string of the evaluation sets."""
    for path in sorted(toys.test_data("corpus").glob("*.jsonl.gz")):
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            yield from (json.loads(line)["text"] for line in lines)
    for path in sorted(toys.test_data("eval").rglob("*.jsonl")):
        with open(path, encoding="utf-8") as lines:
            yield from lines


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", ["smollm2", "qwen2_5", "llama3_1"])
@needs_rust
def test_the_whole_corpus_and_the_evaluation_sets(name: str) -> None:
    spec = json.loads(toys.test_data("tokenizers", name, "tokenizer.json").read_bytes())
    spec |= {"added_tokens": [], "post_processor": None}
    encoder = Encoder.from_spec(spec)
    reference = tokenizers.Tokenizer.from_str(json.dumps(spec))
    n_texts = 0
    stream = real_texts()
    while batch := list(itertools.islice(stream, 512)):
        ids, offsets = encoder.encode_batch(batch, threads=2)
        for k, found in enumerate(reference.encode_batch_fast(batch, add_special_tokens=False)):
            assert ids[offsets[k] : offsets[k + 1]].tolist() == found.ids
        n_texts += len(batch)
    assert n_texts > 50_000


# --- building ------------------------------------------------------------------------------------


@pytest.mark.skipif(shutil.which("cargo") is None, reason="no hay cargo")
@pytest.mark.slow
def test_cargo_tests_and_lints() -> None:
    for command in (
        ["test"],
        ["clippy", "--all-targets", "--", "-D", "warnings"],
        ["fmt", "--check"],
    ):
        offline = [] if command[0] == "fmt" else ["--offline"]
        subprocess.run(
            ["cargo", command[0], *offline, *command[1:]],
            cwd=ROOT / "rustbpe",
            check=True,
            env=os.environ | {"CARGO_TERM_COLOR": "never"},
        )
