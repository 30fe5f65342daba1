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
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import regex
import tokenizers
from tokenizers import normalizers, pre_tokenizers

import elchat_bpe
from elchat.errors import TokenizerError
from elchat.tokenizer import Tokenizer
from elchat_bpe import BpeError, Encoder, UnsupportedError, arrays, library, vocabulary
from elchat_bpe.arrays import Texts
from tests import toys

ROOT = Path(__file__).parents[2]
HAS_RUST = elchat_bpe.why_not() is None
needs_rust = pytest.mark.skipif(not HAS_RUST, reason="rustbpe no está compilado")
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
SCANNERS = {"gpt2": 0, "smollm2": 1, "qwen2": 2, "llama3": 3}
TRICKY = [
    "",
    " ",
    "\n",
    "  \r\n\r\n  x\r",
    "a  b   c\t\td \u3000e\u00a0f",
    "I'm I'M we'Ll 'sabc ''ll 'ſ 'ſt x've' '",
    "¿Qué?¡Sí!«a»—b…c ª º 1º 2ª × ÷ 5×3÷2",
    "12345 1a2 ١٢٣ ½ ⅷ x1  2   3\n4",
    "👩‍👩‍👧 é e\u0301 ñ n\u0303 \u0301x \ufeff \u200b",
    "中文 русский язык हिन्दी ไทย 한국어 \u1112\u1161\u11ab",
    "palabralarguísimasinningunacompasión " * 3,
    "aaaaaaaaaaaaaañ aaaaaaaaaaaaaaañ aaaaaaaaaaaaaaaañ",
    "\u0378\U000e0080\U0010ffff\ue000 \x00\x01\x7f\x85\u2028",
    "<|im_end|><|eot_id|> <tool_call>",
]


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


def reference_pieces(name: str, text: str) -> list[str]:
    """The same expressions on the `regex` engine."""
    if name in ("gpt2", "smollm2"):
        parts = regex.split(r"(\p{N})", text) if name == "smollm2" else [text]
        return [m.group() for part in parts for m in regex.finditer(GPT2, part)]
    numbers = r"\p{N}" if name == "qwen2" else r"\p{N}{1,3}"
    # ſ folds to s in Oniguruma, and not in the default mode of `regex`
    pattern = (vocabulary.SPLIT % numbers).replace("'s|", "'s|'ſ|")
    return [m.group() for m in regex.finditer(pattern, text)]


@needs_rust
@pytest.mark.parametrize("name", SCANNERS)
@pytest.mark.parametrize("text", TRICKY)
def test_pieces_equal_the_regular_expression(name: str, text: str) -> None:
    pieces = elchat_bpe.pieces(SCANNERS[name], text)
    assert pieces == reference_pieces(name, text)
    assert "".join(pieces) == text


def hf_pre_tokenizer(name: str) -> pre_tokenizers.PreTokenizer:
    if name == "gpt2":
        return pre_tokenizers.Split(tokenizers.Regex(GPT2), "isolated")
    if name == "smollm2":
        split = pre_tokenizers.Split(tokenizers.Regex(GPT2), "isolated")
        return pre_tokenizers.Sequence([pre_tokenizers.Digits(True), split])
    numbers = r"\p{N}" if name == "qwen2" else r"\p{N}{1,3}"
    pattern = tokenizers.Regex(vocabulary.SPLIT % numbers)
    return pre_tokenizers.Split(pattern, "isolated")


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


# --- training ------------------------------------------------------------------------------------


def slow_train(text_pieces: list[str], n_tokens: int, min_count: int) -> list[list[str]]:
    """The definition, counting everything again at each step."""
    chars = vocabulary.byte_chars()
    order = {char: k for k, char in enumerate(sorted(chars))}
    words = Counter(tuple(chars[b] for b in piece.encode()) for piece in text_pieces)
    merges: list[list[str]] = []
    while len(order) < 256 + n_tokens:
        counts: Counter[tuple[str, str]] = Counter()
        for word, count in words.items():
            for pair in itertools.pairwise(word):
                counts[pair] += count
        if not counts:
            break
        best = min(counts, key=lambda p: (-counts[p], order[p[0]], order[p[1]]))
        if counts[best] < min_count:
            break
        merges.append(list(best))
        order.setdefault(best[0] + best[1], len(order))
        merged: Counter[tuple[str, ...]] = Counter()
        for word, count in words.items():
            merged[tuple(merge_word(word, best))] += count
        words = merged
    return merges


def merge_word(word: tuple[str, ...], pair: tuple[str, str]) -> list[str]:
    out, k = [], 0
    while k < len(word):
        is_pair = word[k : k + 2] == pair
        out.append(word[k] + word[k + 1] if is_pair else word[k])
        k += 2 if is_pair else 1
    return out


@needs_rust
@pytest.mark.parametrize("name", SCANNERS)
@pytest.mark.parametrize("min_count", [1, 3])
def test_training_equals_the_slow_reference(name: Any, min_count: int) -> None:
    texts = [*toys.SENTENCES, *TRICKY[:8], "aaaa aaa aa abab ababab bcbcbc abcabc" * 5]
    trainer = elchat_bpe.Trainer(name)
    for text in texts:
        trainer.feed([text])
    spec = trainer.train(256 + 150, min_count=min_count)
    pieces = [piece for text in texts for piece in reference_pieces(name, text)]
    assert spec["model"]["merges"] == slow_train(pieces, 150, min_count)


@needs_rust
@pytest.mark.parametrize("name", SCANNERS)
def test_training_equals_the_trainer_of_tokenizers(name: Any) -> None:
    texts = [*toys.SENTENCES * 3, *TRICKY[:8]]
    trainer = elchat_bpe.Trainer(name, is_nfc=False)
    trainer.feed(texts)
    spec = trainer.train(700, min_count=2)
    other = tokenizers.Tokenizer(tokenizers.models.BPE())
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    other.pre_tokenizer = pre_tokenizers.Sequence([hf_pre_tokenizer(name), byte_level])
    other.train_from_iterator(
        texts,
        tokenizers.trainers.BpeTrainer(
            vocab_size=700,
            min_frequency=2,
            show_progress=False,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        ),
    )
    assert spec["model"]["vocab"] == json.loads(other.to_str())["model"]["vocab"]
    assert spec["model"]["merges"] == json.loads(other.to_str())["model"]["merges"]


@needs_rust
@pytest.mark.parametrize("name", SCANNERS)
def test_a_trained_vocabulary_works_everywhere(name: Any, tmp_path: Path) -> None:
    trainer = elchat_bpe.Trainer(name, threads=2)
    trainer.feed(toys.SENTENCES * 3)
    spec = trainer.train(400, special_tokens=["<|endoftext|>", "<|im_end|>"])
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(spec), encoding="utf-8")
    raw, ours = tokenizers.Tokenizer.from_file(str(path)), Tokenizer.from_file(path)
    assert ours.backend == "rustbpe"
    assert ours.vocab_size == raw.get_vocab_size() <= 400
    assert ours.special_ids["<|im_end|>"] == ours.vocab_size - 1
    for text in TRICKY[:-1]:
        assert ours.encode(text) == raw.encode(text).ids


@needs_rust
def test_training_stops_when_asked_and_raises_what_the_progress_raises() -> None:
    trainer = elchat_bpe.Trainer("gpt2")
    trainer.feed([" ".join(f"{k * k:x}" for k in range(5000))])
    calls: list[tuple[int, int]] = []
    trainer.train(1000, progress=lambda done, total: calls.append((done, total)))
    assert calls
    assert all(total == 744 and 0 < done <= total for done, total in calls)
    with pytest.raises(BpeError, match="parado"):
        trainer.train(1000, progress=lambda done, total: True)

    def fail(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trainer.train(1000, progress=fail)


@needs_rust
def test_what_is_handed_over_lives_as_long_as_the_call() -> None:
    texts = [f"palabra{k} " * 20 for k in range(20_000)]
    arguments = Texts(texts).arguments
    gc.collect()
    junk = [np.full(20_000, 2**63, dtype=np.uint64) for _ in range(20)]  # reuses freed memory
    trainer = elchat_bpe.Trainer("gpt2")
    library.call("trainer_feed", trainer._handle, *arguments, 2)
    assert len(trainer.train(500)["model"]["vocab"]) == 500
    assert len(junk) == 20


@needs_rust
def test_impossible_training() -> None:
    with pytest.raises(BpeError, match="familia"):
        elchat_bpe.Trainer("bert")  # type: ignore[arg-type]
    trainer = elchat_bpe.Trainer("gpt2")
    with pytest.raises(BpeError, match="256 bytes"):
        trainer.train(100)
    with pytest.raises(BpeError, match="pasa de"):
        trainer.train(2**40)
    assert len(trainer.train(300)["model"]["vocab"]) == 256  # nothing was fed


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
