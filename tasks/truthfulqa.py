"""TruthfulQA in professional Spanish: true answers against common misconceptions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tasks.common import ChoiceItem, Data, HubData, Item, Record, Task, options


def mc1(records: Sequence[Record], _: Sequence[Record]) -> list[Item]:
    """One true answer among false ones."""
    return [_item(i, record, "mc1_targets") for i, record in enumerate(records)]


def mc2(records: Sequence[Record], _: Sequence[Record]) -> list[Item]:
    """Several true and false answers; the mark is the probability of the true ones."""
    return [_item(i, record, "mc2_targets") for i, record in enumerate(records)]


def _item(i: int, record: Record, key: str) -> Item:
    targets = record.get(key)
    if not isinstance(targets, Mapping):
        raise record.wrong(key, "debe ser un objeto con choices y labels", targets)
    inner = Record(targets, f"{record.origin}, {key}")
    choices, labels = inner.texts("choices"), inner.get("labels")
    gold = tuple(k for k, label in enumerate(labels) if label == 1)
    if not gold or len(labels) != len(choices):
        raise record.wrong(key, "debe dar una etiqueta por opción y al menos un 1", labels)
    context = f"Q: {record.text('question')}\nA:"
    return ChoiceItem(str(i), options(context, choices), gold)


def _task(kind: str, language: str, language_es: str) -> Task:
    is_mc1 = kind == "mc1"
    return Task(
        name=f"truthfulqa-multi_{kind}_{language}",
        version=1,
        title_es=f"Veracidad en {language_es} (TruthfulQA, {kind})",
        kind="multiple_choice",
        metric="acc" if is_mc1 else "mc2",
        source="HiTZ/truthfulqa-multi",
        licence="Apache-2.0",
        language=language,
        data=Data(
            files=(f"truthfulqa_multi/validation_{language}.jsonl",),
            hub=HubData("HiTZ/truthfulqa-multi", language, "validation"),
        ),
        make_items=mc1 if is_mc1 else mc2,
    )


TASKS = tuple(
    _task(kind, *language)
    for kind in ("mc1", "mc2")
    for language in (("es", "español"), ("en", "inglés"))
)
