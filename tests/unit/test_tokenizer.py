import gzip
import json
import time
import unicodedata
from pathlib import Path

import pytest
from tokenizers import Tokenizer as RawTokenizer

from elchat.errors import TokenizerError
from elchat.tokenizer import StreamDecoder, Tokenizer
from tests import toys

TEXTS = [
    "¿Quién eres? Cuéntame algo del año 1998.",
    "línea uno\n\n  línea dos\t\ttabulada   \n",
    "emoji 👩‍👩‍👧, ñandú, cigüeña, 中文, 12345 y 3,14",
    "",
    " ",
    "it's we'll I'M",
]


@pytest.fixture(params=toys.FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def tokenizer(family: str) -> Tokenizer:
    return toys.tokenizer(family)


@pytest.mark.parametrize("text", TEXTS)
def test_ids_equal_the_reference_library_and_round_trip(
    family: str, tokenizer: Tokenizer, text: str
) -> None:
    raw = RawTokenizer.from_str(toys.tokenizer_json(family))
    assert tokenizer.encode(text) == raw.encode(text, add_special_tokens=False).ids
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_nothing_is_added(family: str, tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("hola")
    assert not set(ids) & set(tokenizer.special_ids.values())
    if family == "llama":  # the library would put bos there: that is what must not happen
        raw = RawTokenizer.from_str(toys.tokenizer_json(family))
        assert raw.encode("hola").ids == [tokenizer.special_ids["<|begin_of_text|>"], *ids]


def test_special_token_text_is_plain_text(family: str, tokenizer: Tokenizer) -> None:
    raw = RawTokenizer.from_str(toys.tokenizer_json(family))
    for name, token_id in tokenizer.special_ids.items():
        text = f"hola {name} adiós"
        assert token_id in raw.encode(text, add_special_tokens=False).ids
        assert not set(tokenizer.encode(text)) & set(tokenizer.special_ids.values())
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_special_token_reachable_by_merges_is_still_plain_text() -> None:
    spec = json.loads(toys.tokenizer_json("smollm"))
    vocab, merges = spec["model"]["vocab"], spec["model"]["merges"]
    for left, right in (("z", "q"), ("zq", "z")):
        vocab[left + right] = max(vocab.values()) + 1
        merges.append([left, right])
    spec["added_tokens"].append(dict(spec["added_tokens"][0], id=vocab["zqz"], content="zqz"))
    tokenizer = Tokenizer.from_json(json.dumps(spec))
    assert vocab["zqz"] not in tokenizer.encode("zqz")
    assert vocab["zq"] in tokenizer.encode("zqz")  # other merges stay
    assert tokenizer.decode(tokenizer.encode("zqz")) == "zqz"


def test_ignore_merges_is_kept() -> None:
    spec = json.loads(toys.tokenizer_json("llama"))
    word = "Ġzxq"  # in the table, and no merge makes it
    spec["model"]["vocab"][word] = 9_999
    assert Tokenizer.from_json(json.dumps(spec)).encode(" zxq") == [9_999]


def test_nfc_of_qwen() -> None:
    text = unicodedata.normalize("NFD", "mañana")
    assert toys.tokenizer("qwen").encode(text) == toys.tokenizer("qwen").encode("mañana")
    assert toys.tokenizer("smollm").decode(toys.tokenizer("smollm").encode(text)) == text


def test_batch_equals_one_by_one(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode_batch(TEXTS) == [tokenizer.encode(text) for text in TEXTS]


def test_decode_hides_or_keeps_special_tokens() -> None:
    tokenizer = toys.tokenizer("qwen")
    ids = [
        tokenizer.special_ids["<|im_start|>"],
        *tokenizer.encode("ñ"),
        tokenizer.special_ids["<tool_call>"],
        tokenizer.special_ids["<|im_end|>"],
    ]
    assert tokenizer.decode(ids) == "ñ<tool_call>"  # declared as not special: shown, as in HF
    assert tokenizer.decode(ids, keep_special=True) == "<|im_start|>ñ<tool_call><|im_end|>"
    assert tokenizer.token_bytes(ids[0]) == b""


def test_token_bytes_are_the_raw_bytes(tokenizer: Tokenizer) -> None:
    text = "Mañana, ¿12 👍?"
    pieces = [tokenizer.token_bytes(i) for i in tokenizer.encode(text)]
    assert b"".join(pieces) == text.encode()


@pytest.mark.parametrize("token_id", [-1, 10**6])
def test_ids_out_of_range(tokenizer: Tokenizer, token_id: int) -> None:
    with pytest.raises(TokenizerError, match="no existe: el vocabulario va de 0 a"):
        tokenizer.decode([token_id])
    with pytest.raises(TokenizerError, match=str(token_id)):
        StreamDecoder(tokenizer, keep_special=True).push(token_id)


def test_original_bytes_are_kept(tmp_path: Path) -> None:
    source, copy = tmp_path / "a.json", tmp_path / "b.json"
    source.write_bytes(toys.tokenizer_json("llama").replace(": ", ":  ").encode())
    tokenizer = Tokenizer.from_file(source)
    tokenizer.save(copy)
    assert copy.read_bytes() == source.read_bytes()
    assert Tokenizer.from_file(copy).sha256 == tokenizer.sha256
    assert tokenizer.sha256 != toys.tokenizer("llama").sha256


def test_lone_surrogate_is_a_sentence(tokenizer: Tokenizer) -> None:
    with pytest.raises(TokenizerError, match="Unicode"):
        tokenizer.encode("a\ud800b")
    with pytest.raises(TokenizerError, match="Unicode"):
        tokenizer.encode_batch(["hola", "a\ud800b"])


def _spec(**model: object) -> str:
    spec = json.loads(toys.tokenizer_json("qwen"))
    spec["model"] |= model
    return json.dumps(spec)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no es JSON"),
        ("{", "no es JSON"),
        (toys.tokenizer_json("qwen")[:5000], "no es JSON"),
        ("[]", "falta su modelo"),
        ("{}", "falta su modelo"),
        (_spec(type="WordPiece"), "tipo WordPiece"),
        (_spec(type="Unigram", vocab=[["a", 0.0]]), "tipo Unigram"),
        (_spec(byte_fallback=True), "SentencePiece"),
        (_spec(merges=None), "merges"),
        (_spec(merges=[["zz", "qq"]]), "no se puede cargar"),
        (_spec(vocab={"a": -1}), "identificador imposible"),
        (_spec(vocab={"a": "1"}), "identificador imposible"),
        (_spec(vocab={"a": 2**40}), "identificador imposible"),
        (_spec(vocab={"a": 5, "b": 5}), "mismo identificador"),
    ],
)
def test_bad_vocabularies(text: str, message: str) -> None:
    with pytest.raises(TokenizerError, match=message):
        Tokenizer.from_json(text)


def test_added_token_may_not_take_another_tokens_id() -> None:
    spec = json.loads(toys.tokenizer_json("qwen"))
    spec["added_tokens"][0]["id"] = 7
    with pytest.raises(TokenizerError, match="identificador 7"):
        Tokenizer.from_json(json.dumps(spec))


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match="No se puede leer"):
        Tokenizer.from_file(tmp_path / "no.json")


def test_stream_waits_for_whole_characters(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("a👩‍👧ñ中")
    assert len(ids) > 6  # the toy vocabulary splits them
    stream = StreamDecoder(tokenizer)
    pieces = [stream.push(i) for i in ids]
    assert "\ufffd" not in "".join(pieces)
    assert "".join(pieces) == "a👩‍👧ñ中"
    assert stream.finish() == ""


def test_stream_shows_a_cut_character_only_at_the_end(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("👩")[:-1]
    stream = StreamDecoder(tokenizer)
    assert [stream.push(i) for i in ids] == [""] * len(ids)
    assert stream.finish() == tokenizer.decode(ids) == "\ufffd"


def test_stream_is_linear() -> None:
    tokenizer = toys.tokenizer("smollm")
    ids = tokenizer.encode("¿Qué tal el día? 👍 ") * 10_000
    start = time.perf_counter()
    stream = StreamDecoder(tokenizer)
    text = "".join([stream.push(i) for i in ids])
    # 150,000 ids: decoding all of them again at each step would take hours
    assert time.perf_counter() - start < 20
    assert text == "¿Qué tal el día? 👍 " * 10_000


REAL = {"smollm2": (49_152, 17), "qwen2_5": (151_665, 22), "llama3_1": (128_256, 256)}


@pytest.mark.parametrize("name", REAL)
def test_real_vocabularies(name: str) -> None:
    path = toys.test_data("tokenizers", name, "tokenizer.json")
    tokenizer, raw = Tokenizer.from_file(path), RawTokenizer.from_file(str(path))
    assert (tokenizer.vocab_size, len(tokenizer.special_ids)) == REAL[name]
    corpus = sorted(toys.test_data("corpus").glob("*.jsonl.gz"))
    assert corpus
    texts = [
        gzip.decompress(path.read_bytes())[:20_000].decode("utf-8", "ignore") for path in corpus
    ]
    texts += TEXTS
    for text in texts:
        ids = tokenizer.encode(text)
        assert ids == raw.encode(text, add_special_tokens=False).ids
        expected = unicodedata.normalize("NFC", text) if name == "qwen2_5" else text
        assert tokenizer.decode(ids) == expected
        stream = StreamDecoder(tokenizer)
        assert "".join([*map(stream.push, ids), stream.finish()]) == expected
    for special in tokenizer.special_ids:
        assert not set(tokenizer.encode(special)) & set(tokenizer.special_ids.values())
