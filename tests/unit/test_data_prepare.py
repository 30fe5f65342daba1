"""Preparing shards: what lands in them, the held-out split, reuse, damage, stopping."""

import itertools
import json
import shutil
from dataclasses import dataclass

import numpy as np
import pytest

from elchat import paths
from elchat.config import parse
from elchat.data import cleaning_pool, encoding
from elchat.data import prepare as prepare_module
from elchat.data.cleaning_pool import CleaningPool, process_count
from elchat.data.conversations import Fitter
from elchat.data.heldout import cut_tail
from elchat.data.prepare import PreparationStopped, prepare
from elchat.data.shards import ShardSet
from elchat.errors import DataError, DiskError

EOS, BOS, END = 1, 2, 3


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("ELCHAT_HOME", str(tmp_path / "home"))


def encode_batch(texts):
    """A toy byte tokenizer: byte + 10."""
    return [[byte + 10 for byte in text.encode()] for text in texts]


def encode_arrays(texts):
    rows = encode_batch(texts)
    offsets = np.cumsum([0, *map(len, rows)], dtype=np.int64)
    return np.array([i for row in rows for i in row], np.uint32), offsets


def decode(ids):
    return bytes(i - 10 for i in ids if i >= 10).decode()


@dataclass
class Rendered:
    ids: list
    is_target: list


def render(messages):
    ids, is_target = [], []
    for message in messages:
        part = encode_batch([message["role"][0] + message["content"]])[0] + [END]
        ids += part
        is_target += [message["role"] == "assistant"] * len(part)
    return Rendered(ids, is_target)


def text_of(i, extra=""):
    """Distinct Spanish prose."""
    names = ["Lucía", "Mateo", "Inés", "Bruno", "Carmen", "Tomás", "Elena", "Diego"]
    places = ["Oaxaca", "Cuenca", "Rosario", "Málaga", "Cuzco", "Lugo", "Mérida", "Cali"]
    return (
        f"Cuento número {i}. {names[i % 8]} vivía en {places[i // 8 % 8]} y cada mañana bajaba "
        f"{i + 2} escalones para mirar el río; decía que el agua llevaba {i * 7 + 3} nombres "
        f"escritos y que alguno sería el suyo. {extra}"
    )


def english_of(i):
    return (
        f"Story number {i}. She walked {i + 3} miles to the old house by the river and counted "
        f"{i * 5 + 1} windows, one after another, before she knocked on the heavy wooden door."
    )


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def corpus(path, texts):
    return write_jsonl(path, [{"text": text} for text in texts])


def make_config(cpt=(), sft=(), held_out=None, cleaning=None, context=64):
    stage = {"context_tokens": context, "batch_tokens": context}
    raw = {
        "name": "prueba",
        "model": {"base": "smollm2-135m"},
        "data": {
            "cpt": list(cpt),
            "sft": list(sft),
            "held_out": {"share": 0.2, **(held_out or {})},
            "cleaning": {
                "min_chars": 20,
                "near_duplicate_similarity": 0,
                "max_repeated_share": 1.0,
                **(cleaning or {}),
            },
        },
        "training": {
            "cpt": {**stage, "enabled": bool(cpt)},
            "sft": {**stage, "enabled": bool(sft)},
        },
    }
    return parse(raw, origin="prueba")


def run(config, stage="cpt", **options):
    options = {"tokenizer_sha256": "t", "prefix_ids": [BOS], "eos_id": EOS, **options}
    options.setdefault("encode_arrays", encode_arrays)
    if stage == "sft":
        options.setdefault("render", render)
    return prepare(config, stage, **options)


def documents(source):
    ends = zip(source.offsets[:-1], source.offsets[1:], strict=True)
    return [source.ids[a:b].tolist() for a, b in ends]


def texts_in(source):
    return [decode(ids) for ids in documents(source)]


def test_documents_are_prefixed_closed_and_split_without_loss(tmp_path):
    texts = [text_of(i).strip() for i in range(40)]
    shards = run(make_config([{"path": corpus(tmp_path / "a.jsonl", texts), "licence": "CC0-1.0"}]))
    (train,) = shards.train
    held = shards.held_out("es")
    for source in (train, held):
        for ids, n_bytes in zip(documents(source), source.bytes, strict=True):
            assert ids[0] == BOS
            assert ids[-1] == EOS
            assert len(ids) - 2 == n_bytes == len(decode(ids).encode())
    assert sorted(texts_in(train) + texts_in(held)) == sorted(texts)
    assert 1 <= held.n_documents < 20
    assert train.licences == {"CC0-1.0": train.n_documents}
    assert shards.held_out("en") is None
    counts = shards.manifest["sources"][0]
    assert counts["documents_read"] == 40
    assert counts["documents_kept"] + counts["documents_held_out"] == 40


def test_manifest_counts_reasons_and_hashes(tmp_path):
    texts = [*(text_of(i) for i in range(6)), text_of(0), "corto", english_of(1), ""]
    shards = run(make_config([{"path": corpus(tmp_path / "a.jsonl", texts)}]))
    assert shards.manifest["sources"][0]["removed"] == {
        "corto": 1,
        "duplicado": 1,
        "idioma": 1,
        "vacio": 1,
    }
    shards.verify()
    for entry in shards.manifest["splits"]:
        assert entry["files"]["ids.bin"]["bytes"] == 4 * entry["tokens"]


def test_same_data_elsewhere_opens_the_same_folder_and_weights_are_free(tmp_path, monkeypatch):
    texts = [text_of(i) for i in range(6)]
    (tmp_path / "otra").mkdir()
    first = run(make_config([{"path": corpus(tmp_path / "a.jsonl", texts), "weight": 1.0}]))
    monkeypatch.setattr(prepare_module._Job, "run", None)  # preparing again would fail
    second = run(make_config([{"path": corpus(tmp_path / "otra/a.jsonl", texts), "weight": 3.0}]))
    assert second.path == first.path
    assert (first.train[0].weight, second.train[0].weight) == (1.0, 3.0)


def test_everything_that_changes_tokens_changes_the_key(tmp_path):
    texts = [text_of(i) for i in range(6)]
    path = corpus(tmp_path / "a.jsonl", texts)
    keys = [
        run(make_config([{"path": path}])).key,
        run(make_config([{"path": path, "max_mb": 0.0005}])).key,
        run(make_config([{"path": path}], cleaning={"min_chars": 30})).key,
        run(make_config([{"path": path}], held_out={"share": 0.3})).key,
        run(make_config([{"path": path}], held_out={"max_bytes": 300})).key,
        run(make_config([{"path": path}]), tokenizer_sha256="u").key,
        run(make_config([{"path": path}]), eos_id=9).key,
        run(make_config([{"path": path}]), prefix_ids=[]).key,
    ]
    corpus(tmp_path / "a.jsonl", [*texts, text_of(9)])
    keys.append(run(make_config([{"path": path}])).key)
    assert len(set(keys)) == len(keys)


def test_two_preparations_are_byte_identical(tmp_path):
    config = make_config([{"path": corpus(tmp_path / "a.jsonl", [text_of(i) for i in range(30)])}])
    first = run(config)
    before = first.manifest
    shutil.rmtree(first.path)
    assert run(config).manifest == before


@pytest.mark.parametrize("share", [0.001, 0.5, 1.0])
@pytest.mark.parametrize("n", [2, 3, 5])
def test_two_documents_are_enough_to_hold_one_out(tmp_path, n, share):
    texts = [text_of(i) for i in range(n)]
    config = make_config([{"path": corpus(tmp_path / "a.jsonl", texts)}], held_out={"share": share})
    shards = run(config)
    held, trained = shards.held_out("es").n_documents, shards.train[0].n_documents
    assert held + trained == n
    assert (held, trained) == {0.001: (1, n - 1), 1.0: (n - 1, 1)}.get(share, (held, trained))
    assert held >= 1
    assert trained >= 1


@pytest.mark.parametrize("share", [0.2, 1.0])
def test_a_lone_document_trains_its_head_and_measures_its_tail(tmp_path, share):
    text = "\n\n".join(text_of(i) for i in range(60))
    (tmp_path / "novela.txt").write_text(text, encoding="utf-8")
    held_out = {"share": share, "max_bytes": 3000}
    shards = run(make_config([{"path": str(tmp_path / "novela.txt")}], held_out=held_out))
    head, tail = texts_in(shards.train[0])[0], texts_in(shards.held_out("es"))[0]
    assert f"{head} {tail}".split() == text.split()
    assert 1000 < len(tail.encode()) <= min(share * len(text.encode()), 3000)
    assert shards.manifest["sources"][0]["adjusted"] == {"documentos_partidos_para_medir": 1}


def test_held_out_cap_is_kept_and_nothing_is_lost(tmp_path):
    texts = [text_of(i).strip() for i in range(60)]
    config = make_config(
        [{"path": corpus(tmp_path / "a.jsonl", texts)}], held_out={"share": 0.9, "max_bytes": 1000}
    )
    shards = run(config)
    held = shards.held_out("es")
    assert 500 < held.n_bytes <= 1000
    assert sorted(texts_in(shards.train[0]) + texts_in(held)) == sorted(texts)
    long = [" ".join(text_of(10 * k + i) for i in range(10)) for k in range(2)]
    config = make_config(
        [{"path": corpus(tmp_path / "b.jsonl", long)}], held_out={"max_bytes": 1000}
    )
    shards = run(config)
    held = shards.held_out("es")
    assert 500 < held.n_bytes <= 1000
    words = " ".join(texts_in(shards.train[0]) + texts_in(held)).split()
    assert sorted(words) == sorted(" ".join(long).split())


def test_share_zero_holds_nothing_out(tmp_path):
    path = corpus(tmp_path / "a.jsonl", [text_of(i) for i in range(5)])
    shards = run(make_config([{"path": path}], held_out={"share": 0}))
    assert shards.held_out("es") is None
    assert shards.train[0].n_documents == 5


def test_english_held_out_sources_are_never_trained_on(tmp_path):
    english = corpus(tmp_path / "en.jsonl", [english_of(i) for i in range(10)])
    measure = corpus(tmp_path / "medir.jsonl", [english_of(i) for i in (3, 4, 50)])
    spanish = corpus(tmp_path / "es.jsonl", [text_of(i) for i in range(10)])
    sources = [{"path": spanish}, {"path": english, "language": "en", "weight": 0.1}]
    shards = run(make_config(sources, held_out={"english": [{"path": measure, "language": "en"}]}))
    assert texts_in(shards.held_out("en")) == [english_of(i) for i in (3, 4, 50)]
    trained = texts_in(shards.train[1])
    assert trained == [english_of(i) for i in range(10) if i not in (3, 4)]
    assert [s.weight for s in shards.train] == [1.0, 0.1]

    shards = run(make_config(sources))
    held = texts_in(shards.held_out("en"))
    assert held
    assert sorted(held + texts_in(shards.train[1])) == sorted(english_of(i) for i in range(10))


def test_english_held_out_reading_stops_at_the_cap(tmp_path):
    measure = corpus(tmp_path / "medir.jsonl", [english_of(i) for i in range(500)])
    spanish = corpus(tmp_path / "es.jsonl", [text_of(i) for i in range(10)])
    held_out = {"english": [{"path": measure, "language": "en"}], "max_bytes": 1000}
    shards = run(make_config([{"path": spanish}], held_out=held_out))
    assert 700 < shards.held_out("en").n_bytes <= 1000
    assert shards.manifest["sources"][0]["documents_read"] < 20


def test_duplicates_are_found_across_sources(tmp_path):
    a = corpus(tmp_path / "a.jsonl", [text_of(i) for i in range(8)])
    b = corpus(tmp_path / "b.jsonl", [text_of(i) for i in range(4, 12)])
    shards = run(make_config([{"path": a}, {"path": b}]))
    assert shards.manifest["sources"][1]["removed"] == {"duplicado": 4}
    everything = [t for source in shards.sources for t in texts_in(source)]
    assert len(everything) == len(set(everything)) == 12


def test_long_documents_are_encoded_in_pieces_with_equal_ids(tmp_path, monkeypatch):
    monkeypatch.setattr(encoding, "PIECE_CHARS", 300)
    text = " ".join(text_of(i) for i in range(40)).strip()
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    sizes = []

    def spy(texts):
        sizes.extend(len(t) for t in texts)
        return encode_arrays(texts)

    config = make_config([{"path": str(tmp_path / "a.txt")}], held_out={"share": 0})
    shards = run(config, encode_arrays=spy)
    assert max(sizes) < 400
    assert texts_in(shards.train[0]) == [text]

    def spaced(texts):  # a tokenizer that prepends a space must get texts whole
        sizes.extend(len(t) for t in texts)
        return encode_arrays([" " + t for t in texts])

    shards = run(config, encode_arrays=spaced, tokenizer_sha256="s")
    assert texts_in(shards.train[0]) == [" " + text]


def test_real_bpe_pieces_equal_the_whole(monkeypatch):
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    texts = [text_of(i, "¡Ay! «No»—dijo.\n\n 3,14 €") for i in range(64)]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=900, initial_alphabet=alphabet, show_progress=False)
    )
    monkeypatch.setattr(encoding, "PIECE_CHARS", 50)
    whole = " ".join(texts)
    pieces = list(encoding.split_text(whole))
    assert len(pieces) > 100
    assert "".join(pieces) == whole
    assert [i for p in pieces for i in bpe.encode(p).ids] == bpe.encode(whole).ids


def test_damage_is_noticed_and_rebuilt(tmp_path):
    config = make_config([{"path": corpus(tmp_path / "a.jsonl", [text_of(i) for i in range(9)])}])
    shards = run(config)
    expected = texts_in(shards.train[0])
    ids = shards.path / shards.manifest["splits"][0]["folder"] / "ids.bin"
    good = ids.read_bytes()
    del shards

    path = ids.parent.parent
    ids.write_bytes(good[:-4])
    with pytest.raises(DataError, match=r"ids\.bin mide"):
        ShardSet.open(path)
    assert texts_in(run(config).train[0]) == expected

    ids.write_bytes(good[:-1] + b"\x07")
    ShardSet.open(path)  # sizes agree: only the hash can tell
    with pytest.raises(DataError, match="sha256"):
        ShardSet.open(path, check_hashes=True)

    for broken in ("{", "[]", '{"format_version": 1}'):
        (path / "manifest.json").write_text(broken)
        with pytest.raises(DataError, match="dañados"):
            ShardSet.open(path)
    assert texts_in(run(config).train[0]) == expected
    with pytest.raises(DataError, match="No hay datos preparados"):
        ShardSet.open(path.parent / "nada")


def test_nothing_left_says_why(tmp_path):
    path = corpus(tmp_path / "a.jsonl", ["corto", "breve", english_of(1)])
    with pytest.raises(DataError, match=r"3 leídos.*2 demasiado cortos, 1 en otro idioma"):
        run(make_config([{"path": path}]))
    assert list(paths.shards_dir().glob("*")) == []


def test_stop_leaves_nothing(tmp_path):
    path = corpus(tmp_path / "a.jsonl", [text_of(i) for i in range(300)])
    calls = iter(range(10_000))
    with pytest.raises(PreparationStopped):
        run(make_config([{"path": path}]), should_stop=lambda: next(calls) >= 4)
    assert list(paths.shards_dir().iterdir()) == []


def test_progress_grows_to_the_total(tmp_path, monkeypatch):
    monkeypatch.setattr(prepare_module, "BATCH_DOCUMENTS", 16)
    sources = [
        {"path": corpus(tmp_path / f"{k}.jsonl", [text_of(100 * k + i) for i in range(90)])}
        for k in range(2)
    ]
    seen = []
    run(make_config(sources), progress=lambda done, total, text: seen.append((done, total, text)))
    done = [d for d, _, _ in seen]
    assert len(seen) > 8
    assert done == sorted(done)
    assert seen[-1][0] == seen[-1][1] > 0
    assert any("documentos leídos" in text for _, _, text in seen)


def test_no_room_on_disk_is_said_before_writing(tmp_path, monkeypatch):
    monkeypatch.setattr("elchat.files.free_bytes", lambda path: 10)
    path = corpus(tmp_path / "a.jsonl", [text_of(i) for i in range(9)])
    with pytest.raises(DiskError, match="datos preparados"):
        run(make_config([{"path": path}]))


def test_leftovers_of_a_killed_process_are_swept(tmp_path):
    config = make_config([{"path": corpus(tmp_path / "a.jsonl", [text_of(i) for i in range(9)])}])
    shards = run(config)
    shutil.rmtree(shards.path)
    left = shards.path.with_name(f".{shards.path.name}.999999999.tmp")
    left.mkdir()
    run(config)
    assert not left.exists()


# --- conversations -----------------------------------------------------------------------------


def chat(*turns, system=None):
    messages = [{"role": "system", "content": system}] if system else []
    for i, content in enumerate(turns):
        messages.append({"role": ("user", "assistant")[i % 2], "content": content})
    return messages


def chats(path, conversations):
    return write_jsonl(path, [{"messages": messages} for messages in conversations])


def test_conversations_keep_the_renderers_ids_and_mask(tmp_path):
    conversations = [chat(f"¿Cuánto es {i}?", f"Es {i}.") for i in range(20)]
    config = make_config(sft=[{"path": chats(tmp_path / "c.jsonl", conversations)}])
    shards = run(config, "sft")
    sources = [shards.train[0], shards.held_out("es")]
    expected = [render(c) for c in conversations]
    got = [ids for source in sources for ids in documents(source)]
    assert sorted(got) == sorted(r.ids for r in expected)
    masks = {tuple(r.ids): r.is_target for r in expected}
    for source in sources:
        assert source.n_documents
        for ids, a, n_bytes in zip(documents(source), source.offsets, source.bytes, strict=False):
            assert (source.targets[a : a + len(ids)] == np.array(masks[tuple(ids)])).all()
            answer = bytes(
                i - 10 for i, t in zip(ids, masks[tuple(ids)], strict=True) if t and i >= 10
            )
            assert n_bytes == len(answer) - 1  # the toy renderer writes the role's letter


def test_sft_key_depends_on_template_context_and_language_filter_only(tmp_path):
    path = chats(tmp_path / "c.jsonl", [chat(f"¿{i}?", f"{i}.") for i in range(5)])
    config = make_config(sft=[{"path": path}])
    base = run(config, "sft", render_fingerprint="a").key
    assert run(config, "sft", render_fingerprint="b").key != base
    assert run(make_config(sft=[{"path": path}], context=32), "sft").key != base
    relaxed = make_config(sft=[{"path": path}], cleaning={"min_chars": 7})
    assert run(relaxed, "sft", render_fingerprint="a").key == base
    strict = make_config(sft=[{"path": path}], cleaning={"min_language_probability": 0.9})
    assert run(strict, "sft", render_fingerprint="a").key != base


def test_duplicate_and_wrong_conversations(tmp_path):
    same = chat("¿Hola?", "Hola.")
    path = chats(tmp_path / "c.jsonl", [same, same, chat("¿Y tú?", "Bien.")])
    shards = run(make_config(sft=[{"path": path}]), "sft")
    assert shards.manifest["sources"][0]["removed"] == {"duplicado": 1}
    path = chats(tmp_path / "d.jsonl", [chat("¿Hola?")])
    with pytest.raises(DataError, match=r"d\.jsonl, línea 1"):
        run(make_config(sft=[{"path": path}]), "sft")


def test_zero_supervised_tokens_is_an_error(tmp_path):
    def unsupervised(messages):
        rendered = render(messages)
        return Rendered(rendered.ids, [False] * len(rendered.ids))

    path = chats(tmp_path / "c.jsonl", [chat(f"¿{i}?", f"{i}.") for i in range(5)])
    with pytest.raises(DataError, match="ni un token que aprender"):
        run(make_config(sft=[{"path": path}]), "sft", render=unsupervised)


def fit(messages, max_tokens):
    from collections import Counter

    fitter = Fitter(render, max_tokens, Counter())
    return list(fitter.fit(messages)), fitter.counts


def test_a_conversation_that_fits_is_whole():
    messages = chat("hola", "buenas", system="s")
    pieces, counts = fit(messages, len(render(messages).ids))
    assert [m for m, _ in pieces] == [messages]
    assert not counts


def test_a_long_conversation_is_split_at_turns_with_its_system_message():
    turns = [f"{word} {i}" for i in range(6) for word in ("pregunta", "respuesta")]
    messages = chat(*turns, system="sé breve")
    pieces, counts = fit(messages, 65)
    assert len(pieces) > 1
    assert counts == {"conversaciones_partidas": 1}
    rest = []
    for piece, rendered in pieces:
        assert piece[0] == messages[0]
        assert piece[1]["role"] == "user"
        assert rendered.ids == render(piece).ids
        assert len(rendered.ids) <= 65
        rest += piece[1:]
    assert rest == messages[1:]
    # greedy: the first exchange of a piece would not have fitted in the piece before
    for (before, _), (after, _) in itertools.pairwise(pieces):
        assert len(render([*before, *after[1:3]]).ids) > 65


def test_a_long_question_loses_its_beginning_and_only_that_needed():
    messages = chat("x" * 100 + " ¿y el final?", "sí, claro", system="s")
    ((piece, rendered),), counts = fit(messages, 50)
    assert counts == {"preguntas_recortadas": 1}
    assert piece[0] == messages[0]
    assert piece[2] == messages[2]
    assert messages[1]["content"].endswith(piece[1]["content"])
    assert len(rendered.ids) == 50


def test_an_answer_longer_than_the_context_is_kept_whole():
    messages = chat("hola", "larga " * 30)
    ((piece, rendered),), counts = fit(messages, 50)
    assert counts == {"respuestas_partidas": 1}
    assert piece == messages
    assert rendered.ids == render(messages).ids


def test_splits_are_counted_in_the_manifest(tmp_path):
    turns = [f"{word} {i}" for i in range(8) for word in ("pregunta", "respuesta")]
    others = [chat(f"¿{i}?", f"{i}.") for i in range(3)]
    path = chats(tmp_path / "c.jsonl", [chat(*turns), *others])
    shards = run(
        make_config(sft=[{"path": path, "language": "any"}], held_out={"share": 0}, context=64),
        "sft",
    )
    assert shards.manifest["sources"][0]["adjusted"] == {"conversaciones_partidas": 1}
    assert shards.train[0].n_documents > 4
    assert max(len(ids) for ids in documents(shards.train[0])) <= 65


def test_cut_tail_loses_nothing_but_spaces():
    text = "Uno dos.\n\nTres cuatro cinco.\n\nSeis año niño."
    for wanted in range(0, 60):
        head, tail = cut_tail(text, wanted)
        assert len(tail.encode()) <= wanted
        assert (head + tail).replace(" ", "").replace("\n", "") == text.replace(" ", "").replace(
            "\n", ""
        )


def test_conversations_in_another_language_are_left_out_and_counted(tmp_path):
    spanish = "Explícame con calma por qué el cielo se ve azul durante el día y rojo al atardecer."
    english = "Please explain slowly why the sky looks blue during the day and red in the evening."
    code = "```python\nfor line in open(path): print(line.strip().lower().split(sep))\n```" * 3
    rows = [
        chat(spanish, "Porque el aire dispersa más la luz azul que la roja, y al caer..."),
        chat(english, "Because air scatters blue light more than red light, and then..."),
        chat("¿Cómo leo un archivo línea a línea y le quito los espacios?", code),
        chat("Hello!", "Hi!"),
    ]
    path = chats(tmp_path / "mezcla.jsonl", rows)
    shards = run(make_config(sft=[{"path": path}]), "sft")
    counts = shards.manifest["sources"][0]
    assert counts["removed"] == {"idioma": 1}
    assert counts["documents_kept"] + counts["documents_held_out"] == 3


def test_the_shards_do_not_depend_on_the_number_of_processes(tmp_path):
    texts = [text_of(i % 50, "\u200bEspaÃ±a. " * (i % 3)) for i in range(150)]
    texts += [english_of(3), "corto", "", "Leer más\n" + text_of(77)] * 2
    path = corpus(tmp_path / "a.jsonl", texts)
    cleaning = {"near_duplicate_similarity": 0.9}
    config = make_config([{"path": path}], cleaning=cleaning)
    seen = []
    for processes in (1, 2, 3):
        shards = run(config, processes=processes)
        files = {
            str(file.relative_to(shards.path)): file.read_bytes()
            for file in sorted(shards.path.rglob("*"))
            if file.is_file()
        }
        seen.append(files)
        shutil.rmtree(shards.path)
    assert seen[0] == seen[1] == seen[2]
    assert shards.manifest["sources"][0]["removed"]["idioma"] == 2
    assert "casi_duplicado" in shards.manifest["sources"][0]["removed"]


def test_a_dead_cleaning_process_is_a_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(cleaning_pool, "CHUNK_DOCUMENTS", 2)
    config = make_config([{"path": corpus(tmp_path / "a.jsonl", map(text_of, range(60)))}])
    start = CleaningPool._start

    def start_and_kill(pool):
        start(pool)
        for worker in pool._workers:
            worker.kill()

    monkeypatch.setattr(CleaningPool, "_start", start_and_kill)
    with pytest.raises(DataError, match="menos procesos"):
        run(config, processes=2)
    assert not list(paths.shards_dir().iterdir())


def test_processes_are_those_the_text_is_worth(monkeypatch):
    monkeypatch.setattr(cleaning_pool.os, "sched_getaffinity", lambda _: set(range(64)))
    assert process_count(None, 10_000) == 1
    assert process_count(None, 50_000_000) == 6
    assert process_count(None, 10**12) == cleaning_pool.MAX_PROCESSES
    assert process_count(3, 0) == 3
    assert process_count(0, 0) == 1


@pytest.mark.parametrize("prefix", [[], [1], [1, 2]])
@pytest.mark.parametrize("eos", [None, 9])
def test_documents_are_framed(prefix, eos):
    rows = [[5, 6], [], [7], [8] * 5]
    ids = np.array([i for row in rows for i in row], np.uint32)
    framed, lengths = encoding.frame(ids, np.array([len(row) for row in rows]), prefix, eos)
    expected = [[*prefix, *row, *([] if eos is None else [eos])] for row in rows]
    assert framed.tolist() == [i for row in expected for i in row]
    assert lengths.tolist() == [len(row) for row in expected]
    assert framed.dtype == np.uint32
