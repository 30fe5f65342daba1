"""The runner, its files, held-out text, comparison, contamination, and bad input."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from elchat.data.loader import heldout_batches
from elchat.data.shards import TokenSource
from elchat.errors import ConfigError, DataError, NetworkError
from elchat.evaluation import comparison, contamination, datasets, documents, results, runner
from elchat.evaluation.held_out import bits_per_byte
from elchat.evaluation.results import Subject
from elchat.evaluation.runner import Asked, run_task
from elchat.training.device import ComputePlan
from elchat.weights import LoadedModel
from tasks import all_tasks
from tasks.common import ChoiceItem, TextItem, options
from tests import toys

TEXTS = [
    "El niño comió piñas en la montaña y después durmió la siesta bajo el olivo.",
    "Mañana iremos al mercado: tomates, pan, aceite y un kilo de garbanzos. " * 4,
    "¿Quién eres? Soy elchat.",
]


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return toys.loaded("smollm", vocab_size=toys.tokenizer("smollm").vocab_size)


def subject(loaded: LoadedModel, label: str = "final", **changes) -> Subject:
    facts = {"path": "m", "sha256": results.weights_sha256(loaded.model), "base": None}
    return Subject(label, **(facts | {"precision": "fp32"} | changes))


def user_file(path: Path, *rows: object) -> Path:
    lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def questions(n: int = 12) -> list[dict]:
    return [
        {"prompt": f"El número {i} es", "choices": ["par", "impar"], "answer": i % 2}
        for i in range(n)
    ]


def one(words: list[str]) -> datasets.Request:
    (request,) = datasets.parse_requests(words)
    return request


# --- questions asked and marked --------------------------------------------------------------


def test_a_choice_is_the_likeliest_option(loaded: LoadedModel, tmp_path: Path):
    path = user_file(tmp_path / "mia.jsonl", *questions())
    request = one([str(path)])
    items = datasets.load_items(request, None)
    entry = run_task(tmp_path, subject(loaded), loaded, request.task, items, Asked())
    assert entry is not None
    rows = results.load_rows(tmp_path, "final", "mia")
    for item in items:
        assert isinstance(item, ChoiceItem)
        row = rows[item.id]
        ids = [loaded.tokenizer.encode(o.context + o.continuation) for o in item.options]
        start = len(loaded.tokenizer.encode(item.options[0].context))
        for option, found in zip(ids, row["logprobs"], strict=True):
            logp = toys.logits(loaded.model, torch.tensor([option[:-1]]))[0].log_softmax(-1)
            slow = sum(float(logp[i - 1, option[i]]) for i in range(start, len(option)))
            assert found == pytest.approx(slow, abs=1e-3)
        assert row["pred"] == row["logprobs"].index(max(row["logprobs"]))
        assert row["score"] == float(row["pred"] == item.gold[0])
    assert entry["value"] == sum(r["score"] for r in rows.values()) / len(items)
    assert (entry["n"], entry["random"], entry["metric"]) == (12, 0.5, "acc")
    assert entry["also"]["acc_norm"]["n"] == 12
    low, high = entry["ci95"]
    assert low <= entry["value"] <= high


def test_a_written_answer_stops_and_is_marked(loaded: LoadedModel, tmp_path: Path):
    rows = [{"prompt": f"Pregunta {i}", "answers": ["nada de esto"]} for i in range(3)]
    request = one([str(user_file(tmp_path / "libre.jsonl", *rows))])
    items = datasets.load_items(request, None)
    entry = run_task(tmp_path, subject(loaded), loaded, request.task, items, Asked())
    assert entry is not None
    assert (entry["kind"], entry["value"]) == ("exact_match", 0.0)
    kept = results.load_rows(tmp_path, "final", "libre")
    assert all("text" in row for row in kept.values())


def test_an_answer_is_cut_at_the_first_stop(loaded: LoadedModel):
    assert runner.cut_at("uno\ndos Pregunta: tres", ("Pregunta:", "\n")) == "uno"
    assert runner.cut_at("uno", ("x",)) == "uno"
    free = TextItem("a", "El niño", (), max_new_tokens=12)
    task = all_tasks()["deletreo_es"]
    (row,) = runner.answers(loaded, task_of(task, grade=lambda item, text: {"exact_match": 0.0}),
                            [free])  # fmt: skip
    stop = row["text"][2:4]
    (row,) = runner.answers(
        loaded,
        task_of(task, grade=lambda item, text: {"exact_match": 0.0}),
        [TextItem("a", "El niño", (), until=(stop,), max_new_tokens=12)],
    )
    assert stop not in row["text"]
    assert row["text"] == runner.cut_at(row["text"] + stop, (stop,))


def task_of(task, **changes):
    from dataclasses import replace

    return replace(task, uses_chat=False, **changes)


def test_a_program_is_run_only_if_allowed(loaded: LoadedModel, tmp_path: Path, monkeypatch):
    task = all_tasks()["humaneval_xl_es"]
    item = TextItem("p/1", "def dos():\n", (), until=(), max_new_tokens=4, test="assert dos() == 2")
    with pytest.raises(ConfigError, match="--allow-code"):
        run_task(tmp_path, subject(loaded), loaded, task, [item], Asked())
    # the model's words are replaced by a right and a wrong body; the program really runs
    for body, mark in (("    return 2", 1.0), ("    return 3", 0.0)):
        monkeypatch.setattr(runner, "cut_at", lambda text, until, body=body: body)
        (row,) = runner.answers(loaded, task, [item])
        assert row["score"] == mark


# --- going on after a kill, changes ------------------------------------------------------------


def test_what_is_known_is_not_asked_again(loaded: LoadedModel, tmp_path: Path):
    request = one([str(user_file(tmp_path / "mia.jsonl", *questions()))])
    items = datasets.load_items(request, None)
    seen: list[int] = []
    stopped = Asked(progress=lambda done, total: seen.append(done), should_stop=lambda: True)
    assert run_task(tmp_path, subject(loaded), loaded, request.task, items, stopped) is None
    assert seen == [1]
    path = tmp_path / "items" / "final" / "mia.jsonl"
    with open(path, "a", encoding="utf-8") as handle:
        handle.write('{"id": "7", "sco')  # killed in the middle of a line
    seen.clear()
    again = Asked(progress=lambda done, total: seen.append(done))
    first = run_task(tmp_path, subject(loaded), loaded, request.task, items, again)
    assert seen == list(range(2, 13))
    assert len(path.read_text(encoding="utf-8").splitlines()) == 12
    seen.clear()
    second = run_task(tmp_path, subject(loaded), loaded, request.task, items, again)
    assert seen == []
    assert first is not None
    assert second is not None
    assert first["value"] == second["value"]


def test_a_changed_question_alone_is_asked_again(loaded: LoadedModel, tmp_path: Path):
    rows = questions()
    path = user_file(tmp_path / "mia.jsonl", *rows)
    items = datasets.load_items(one([str(path)]), None)
    run_task(tmp_path, subject(loaded), loaded, one([str(path)]).task, items, Asked())
    rows[4]["prompt"] = "El número cuatro es"
    user_file(path, *rows)
    seen: list[int] = []
    items = datasets.load_items(one([str(path)]), None)
    asked = Asked(progress=lambda done, total: seen.append(done))
    run_task(tmp_path, subject(loaded), loaded, one([str(path)]).task, items, asked)
    assert seen == [12]


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("version", "la tarea era la versión 1 y ahora es la 2"),
        ("sha256", "los pesos del modelo son otros"),
        ("precision", "se midió en fp32"),
    ],
)
def test_another_version_or_model_says_so_and_loses_nothing(
    what: str, message: str, loaded: LoadedModel, tmp_path: Path
):
    request = one([str(user_file(tmp_path / "mia.jsonl", *questions()))])
    items = datasets.load_items(request, None)
    run_task(tmp_path, subject(loaded), loaded, request.task, items, Asked())
    notes: list[str] = []
    task = task_of(request.task, version=2) if what == "version" else request.task
    other = subject(loaded) if what == "version" else subject(loaded, **{what: "otro"})
    run_task(tmp_path, other, loaded, task, items, Asked(note=notes.append))
    assert message in notes[0]
    (kept,) = (tmp_path / "anteriores").rglob("mia*.jsonl")
    assert str(kept) in notes[0]
    assert len(kept.read_text(encoding="utf-8").splitlines()) == 12


def test_figures_merge_and_those_of_other_weights_are_set_aside(
    loaded: LoadedModel, tmp_path: Path
):
    first = subject(loaded)
    results.save_figures(tmp_path, first, "orden", tasks={"a": {"seconds": 1.0}})
    found = results.save_figures(tmp_path, first, "orden", tasks={"b": {"seconds": 2.0}})
    assert set(found["tasks"]) == {"a", "b"}
    assert found["seconds"] == 3.0
    found = results.save_figures(tmp_path, subject(loaded, sha256="x"), "orden", tasks={"c": {}})
    assert set(found["tasks"]) == {"c"}
    assert len(list((tmp_path / "anteriores").glob("final-*.json"))) == 1


# --- bits per byte -----------------------------------------------------------------------------


def token_source(loaded: LoadedModel) -> TokenSource:
    import numpy as np

    ids = [[*loaded.doc_prefix_ids, *loaded.tokenizer.encode(t), loaded.eos_id] for t in TEXTS]
    return TokenSource(
        name="apartado", split="heldout_es", language="es", licence="CC0", licences={}, weight=1.0,
        ids=np.array([i for one in ids for i in one], np.uint32),
        offsets=np.cumsum([0, *map(len, ids)], dtype=np.int64),
        bytes=np.array([len(t.encode()) for t in TEXTS], np.int64),
    )  # fmt: skip


def test_documents_add_up_to_the_training_loop_s_figure(loaded: LoadedModel, tmp_path: Path):
    source = token_source(loaded)
    compute = ComputePlan("cpu", "fp32", 1, 1.0, "prueba")
    batches = heldout_batches(source, context_tokens=40, rows=2)
    expected = bits_per_byte(loaded.model, batches, compute)
    text = documents.from_shards(loaded, source, loaded.tokenizer, context_tokens=40)
    entry = documents.measure(tmp_path, subject(loaded), loaded.model, text)
    assert entry is not None
    assert entry["value"] == pytest.approx(expected, rel=1e-5)
    assert (entry["n_documents"], entry["n_bytes"]) == (3, int(source.bytes.sum()))
    assert entry["ci95"][0] < entry["value"] < entry["ci95"][1]


def test_two_texts_in_one_folder_are_not_mixed(loaded: LoadedModel, tmp_path: Path):
    texts = {"uno": TEXTS, "otro": [*TEXTS[:1], "El público se rió."]}
    for label, seed in (("base", 0), ("final", 3)):
        model = toys.loaded("smollm", seed=seed, vocab_size=420)
        who = subject(model, label)
        for source, some in texts.items():
            text = documents.from_texts(model, "es", some, source)
            entry = documents.measure(tmp_path, who, model.model, text)
            assert entry is not None
            assert entry["n_documents"] == len(some)
            results.save_figures(tmp_path, who, "orden", bits_per_byte={"es": entry})
    found = comparison.compare(tmp_path, "base", "final")
    assert found["bits_per_byte"]["es"]["n"] == 2


def test_answers_alone_count_in_conversations(loaded: LoadedModel):
    from dataclasses import replace

    import numpy as np

    source = token_source(loaded)
    targets = np.zeros(len(source.ids), np.uint8)
    targets[5:9] = targets[12:14] = 1
    text = documents.from_shards(loaded, replace(source, targets=targets), loaded.tokenizer)
    assert [len(pair.continuation) for pair in text.documents[0]] == [4, 2]
    other = toys.loaded("qwen")
    with pytest.raises(DataError, match="otro vocabulario"):
        documents.from_shards(other, replace(source, targets=targets), loaded.tokenizer)


def test_two_vocabularies_are_measured_on_the_same_documents(loaded: LoadedModel, tmp_path: Path):
    source = token_source(loaded)
    other = toys.loaded("qwen")
    for label, model in (("base", loaded), ("final", other)):
        text = documents.from_shards(model, source, loaded.tokenizer)
        entry = documents.measure(tmp_path, subject(model, label), model.model, text)
        results.save_figures(tmp_path, subject(model, label), "orden", bits_per_byte={"es": entry})
    found = comparison.compare(tmp_path, "base", "final")
    assert found["bits_per_byte"]["es"]["n"] == 3


# --- comparison and verdict ---------------------------------------------------------------------


def bits(a: float, b: float, low: float, high: float) -> dict:
    entry = {"a": a, "b": b, "difference": b - a, "ci95": [low, high], "p_value": 0.01}
    return entry | {"test": "permutation", "n": 9}


def task_entry(difference: float, p: float) -> dict:
    return {"a": 0.5, "b": 0.5 + difference, "difference": difference, "p_adjusted": p, "n": 99}


GOOD_ES, SAME_EN = bits(2.0, 1.8, -0.3, -0.1), bits(1.2, 1.21, -0.01, 0.03)


@pytest.mark.parametrize(
    ("tasks", "texts", "expected"),
    [
        ({}, {"es": GOOD_ES, "en": SAME_EN}, "mejor"),
        ({}, {"es": GOOD_ES}, "mejor"),
        ({}, {"es": bits(2.0, 1.99, -0.03, 0.01), "en": SAME_EN}, "sin evidencia"),
        ({}, {"es": bits(2.0, 2.2, 0.1, 0.3), "en": SAME_EN}, "peor"),
        ({}, {"es": GOOD_ES, "en": bits(1.2, 1.3, 0.05, 0.15)}, "peor"),
        ({}, {"es": GOOD_ES, "en": bits(1.2, 1.25, -0.02, 0.12)}, "sin evidencia"),
        ({"x": task_entry(-0.1, 0.01)}, {"es": GOOD_ES, "en": SAME_EN}, "peor"),
        ({"x": task_entry(-0.1, 0.2)}, {"es": GOOD_ES, "en": SAME_EN}, "mejor"),
        ({"x": task_entry(0.1, 0.01)}, {}, "mejor"),
        ({"x": task_entry(0.1, 0.2)}, {}, "sin evidencia"),
        ({}, {"es": {**GOOD_ES, "ci95": None}}, "sin evidencia"),
    ],
)
def test_the_rule(tasks: dict, texts: dict, expected: str):
    decision, reasons = comparison.verdict(tasks, texts)
    assert decision == expected
    assert reasons


def test_two_models_on_the_same_items(loaded: LoadedModel, tmp_path: Path):
    request = one([str(user_file(tmp_path / "mia.jsonl", *questions(40)))])
    items = datasets.load_items(request, None)
    models = {"base": loaded, "final": toys.loaded("smollm", seed=5, vocab_size=420)}
    for label, model in models.items():
        who = subject(model, label)
        entry = run_task(tmp_path, who, model, request.task, items, Asked())
        results.save_figures(tmp_path, who, "orden", tasks={"mia": entry})
    found = comparison.compare(tmp_path, "base", "final")
    entry = found["tasks"]["mia"]
    assert (entry["test"], entry["n"]) == ("mcnemar", 40)
    assert entry["difference"] == pytest.approx(entry["b"] - entry["a"])
    assert found == json.loads((tmp_path / "compare-base-final.json").read_text())
    with pytest.raises(DataError, match="No hay resultados de «otro»"):
        comparison.compare(tmp_path, "base", "otro")


# --- contamination ------------------------------------------------------------------------------


def test_questions_of_the_training_text_are_found(loaded: LoadedModel):
    import numpy as np

    known = "El niño comió piñas en la montaña y después durmió la siesta bajo el olivo."
    items = {
        "t": [
            ChoiceItem("dentro", options(f"¡{known.upper()}!", ["sí", "no"]), (0,)),
            ChoiceItem(
                "fuera", options("palabras " * 9 + "que nadie leyó jamás", ["a", "b"]), (0,)
            ),
            ChoiceItem("corta", options("muy corta", ["sí", "no"]), (0,)),
        ]
    }
    index = contamination.Index(items)
    source = token_source(loaded)
    index.scan(contamination.shard_texts([source], loaded.tokenizer))
    assert index.found == {("t", "dentro")}
    rows = {i: {"id": i, "score": float(i != "dentro")} for i in ("dentro", "fuera", "corta")}
    task = task_of(all_tasks()["copa_es"], name="t")
    entry = contamination.report(index, task, items["t"], rows)
    assert (entry["n_found"], entry["n_checked"], entry["n_too_short"]) == (1, 2, 1)
    assert entry["value_without"] == 1.0
    assert np.asarray(contamination.text_runs("doce " * 12)).size == 0


# --- bad input ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "está vacío"),
        ([{"pregunta": "x"}], "hace falta «choices» .* las claves que hay son: pregunta"),
        (
            [questions()[0], {"choices": ["a", "b"], "answer": 0}],
            "línea 2: falta la clave «prompt»",
        ),
        ([questions()[0], {"prompt": "x"}], "línea 2: falta la clave «choices»"),
        ([questions()[0], "{roto"], "línea 2: no es JSON válido"),
        ([{**questions()[0], "choices": ["una"]}], "debe tener dos opciones o más"),
        ([{**questions()[0], "answer": 2}], "«answer» debe ser un entero de 0 a 1 y vale '2'"),
        ([{**questions()[0], "id": "a"}] * 2, "identificadores repetidos"),
    ],
)
def test_a_broken_file_of_the_user_is_explained(rows: list, message: str, tmp_path: Path):
    path = user_file(tmp_path / "mia.jsonl", *rows)
    if not rows:
        path.write_text("", encoding="utf-8")
    with pytest.raises(DataError, match=message):
        datasets.load_items(one([str(path)]), None)


def test_names_and_files_that_are_not_there(tmp_path: Path, monkeypatch):
    with pytest.raises(ConfigError, match="¿quisiste decir «escola»"):
        datasets.parse_requests(["escolla"])
    with pytest.raises(DataError, match="No existe el archivo"):
        datasets.parse_requests([str(tmp_path / "no.jsonl")])
    monkeypatch.delenv("ELCHAT_EVAL_DATA", raising=False)
    with pytest.raises(DataError, match="No están en esta máquina los datos de exams_es") as told:
        datasets.load_items(one(["exams_es"]), None)
    assert "ELCHAT_EVAL_DATA" in (told.value.hint or "")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(NetworkError, match="copa_es no está en esta máquina y el hub no responde"):
        datasets.load_items(one(["copa_es"]), None)
    assert not list(tmp_path.rglob("copa_es*"))


def test_data_are_looked_for_in_order(tmp_path: Path, monkeypatch):
    row = {"sentence": "Ana come.", "label": 1}
    folder = tmp_path / "datos" / "escola"
    folder.mkdir(parents=True)
    user_file(folder / "dev.jsonl", row, row, row)
    monkeypatch.setenv("ELCHAT_EVAL_DATA", str(tmp_path / "datos"))
    assert len(datasets.load_items(one(["escola"]), None)) == 3
    assert len(datasets.load_items(one(["escola"]), 2)) == 2
    mine = user_file(tmp_path / "otra.jsonl", row)
    assert len(datasets.load_items(one([f"escola={mine}"]), None)) == 1
    assert {r.task.name for r in datasets.parse_requests(["propias"])} == {
        "acentos_es", "signos_es", "concordancia_es", "voseo_es", "falsos_amigos_es",
    }  # fmt: skip
    assert len(datasets.parse_requests(["todas"])) == len(all_tasks())


def test_an_empty_option_is_named(loaded: LoadedModel, tmp_path: Path):
    request = one([str(user_file(tmp_path / "mia.jsonl", *questions(2)))])
    items = [ChoiceItem("3", options("x", ["", "y"], delimiter=""), (0,))]
    with pytest.raises(DataError, match="mia, 3: una opción está vacía"):
        run_task(tmp_path, subject(loaded), loaded, request.task, items, Asked())
