"""Our figures against lm-evaluation-harness's on the same questions, and its adapter for us."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("lm_eval")

from elchat.evaluation import runner
from elchat.evaluation.passes import compiled_weights
from elchat.weights import LoadedModel, load_model, save_hf
from tasks import all_tasks
from tasks.common import Record
from tests import harness, toys

ROWS: dict[str, list[dict[str, Any]]] = {
    "xnli_es_spanish_bench": [
        {"premise": f"La niña come {i} piñas .", "hypothesis": "Alguien come", "label": i % 3}
        for i in range(9)
    ],
    "paws_es_spanish_bench": [
        {"sentence1": f"Ana vio a Luis en {i}.", "sentence2": f"En {i} Luis vio a Ana.",
         "label": i % 2}
        for i in range(8)
    ],
    "escola": [{"sentence": f"Yo {w} pan.", "label": i % 2} for i, w in
               enumerate(["como", "comes", "tengo", "tiene", "vendo", "vende", "hago", "hace"])],
}  # fmt: skip


def ours(loaded: LoadedModel, name: str, rows: list[dict[str, Any]]) -> tuple[float, list[float]]:
    """Our figure and the marks in order."""
    task = all_tasks()[name]
    items = task.make_items([Record(row, name) for row in rows], [])
    compiled = compiled_weights(loaded.model)  # what `elchat eval` does
    found = {row["id"]: row for row in runner.answers(loaded, task, items, compiled)}
    answers = [found[item.id] for item in items]
    return runner.estimate(task.metric, answers).value, [row["score"] for row in answers]


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("arnes")
    loaded = toys.loaded("smollm", max_positions=2048, vocab_size=420)
    save_hf(loaded, folder / "modelo", dtype=torch.float32)
    harness.write_tasks(folder / "tareas", ROWS)
    return folder


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")


@pytest.mark.parametrize("backend", ["hf", "elchat"])
def test_three_tasks_agree_on_a_toy(backend: str, toy: Path):
    model: Any
    if backend == "hf":
        from lm_eval.models.huggingface import HFLM

        model = HFLM(pretrained=str(toy / "modelo"), dtype="float32", device="cpu", batch_size=4)
    else:
        from elchat.lm_eval_adapter import ElchatLM

        model = ElchatLM(path=str(toy / "modelo"))
    theirs = harness.run(model, toy / "tareas", list(ROWS))
    loaded = load_model(toy / "modelo")
    for name, rows in ROWS.items():
        value, marks = ours(loaded, name, rows)
        assert 100 * value == pytest.approx(
            100 * harness.figure(name, theirs[name]["metrics"]), abs=0.1
        )
        samples = sorted(theirs[name]["samples"], key=lambda s: s["doc_id"])
        assert [s["acc"] for s in samples] == marks


def test_the_adapter_writes_what_our_runner_writes(toy: Path):
    from lm_eval.api.instance import Instance

    from elchat.errors import ConfigError
    from elchat.lm_eval_adapter import ElchatLM

    model = ElchatLM(path=str(toy / "modelo"), max_gen_toks=12)
    greedy = {"until": ["zzz"], "do_sample": False}
    texts = ["El niño", "Mañana iremos al mercado: tomates"]
    said = model.generate_until([request(Instance, (text, greedy)) for text in texts])
    loaded = load_model(toy / "modelo")
    for text, answer in zip(texts, said, strict=True):
        ids = loaded.tokenizer.encode(text)
        for _ in range(12):
            best = int(toys.logits(loaded.model, torch.tensor([ids]))[0, -1].argmax())
            if best in (loaded.eos_id, *loaded.chat_eos_ids):
                break
            ids.append(best)
        assert answer == loaded.tokenizer.decode(ids[len(loaded.tokenizer.encode(text)) :])
    (total,) = model.loglikelihood_rolling([request(Instance, (texts[1],))])
    ids = [model.prefix_token_id, *loaded.tokenizer.encode(texts[1])]
    logp = toys.logits(loaded.model, torch.tensor([ids[:-1]]))[0].log_softmax(-1)
    assert total == pytest.approx(sum(float(logp[i, t]) for i, t in enumerate(ids[1:])), abs=1e-3)
    with pytest.raises(ConfigError, match="sin azar"):
        model.generate_until([request(Instance, ("x", {"do_sample": True, "until": []}))])


def request(instance: Any, arguments: tuple) -> Any:
    return instance(request_type="generate_until", doc={}, arguments=arguments, idx=0)


@pytest.mark.slow
def test_three_tasks_agree_on_real_weights(tmp_path: Path):
    """Set ELCHAT_TEST_DATA (its `eval` folder) and ELCHAT_TEST_MODEL (a folder or a GGUF)."""
    import os

    from lm_eval.models.huggingface import HFLM

    path = os.environ.get("ELCHAT_TEST_MODEL")
    if not path:
        pytest.skip("hace falta ELCHAT_TEST_MODEL")
    files = {
        "xnli_es_spanish_bench": "xnli_es/test_original.jsonl",
        "paws_es_spanish_bench": "pawsx_es/test.jsonl",
        "escola": "escola/dev.jsonl",
        "mgsm_direct_es_spanish_bench": "mgsm_es/test.jsonl",
    }
    rows = {}
    for name, file in files.items():
        lines = toys.test_data("eval", *file.split("/")).read_text(encoding="utf-8").splitlines()
        rows[name] = [json.loads(line) for line in lines[: 8 if name.startswith("mgsm") else 50]]
    loaded = load_model(Path(path))
    save_hf(loaded, tmp_path / "modelo", dtype=torch.float32)
    harness.write_tasks(tmp_path / "tareas", rows)
    model = HFLM(pretrained=str(tmp_path / "modelo"), dtype="float32", device="cpu", batch_size=8)
    theirs = harness.run(model, tmp_path / "tareas", list(rows))
    for name, values in rows.items():
        value, _ = ours(loaded, name, values)
        assert 100 * value == pytest.approx(
            100 * harness.figure(name, theirs[name]["metrics"]), abs=0.1
        )
