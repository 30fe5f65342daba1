"""Reading configurations: overrides, paths, and a useful sentence for every mistake."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel

from elchat import config
from elchat.config import Config
from elchat.errors import ConfigError

RAW: dict[str, Any] = {
    "name": "prueba",
    "model": {"base": "smollm2-135m"},
    "data": {"cpt": [{"path": "textos"}], "sft": [{"hub": "org/chat"}]},
}


def parse(*overrides: str, **changes: Any) -> config.Config:
    return config.parse(copy.deepcopy(RAW) | changes, origin="prueba.yaml", overrides=overrides)


def test_overrides_reach_nested_keys_and_list_items():
    made = parse("training.seed=7", "data.cpt.0.weight=2.5", "training.cpt.learning_rate=3e-4")
    assert made.training.seed == 7
    assert made.data.cpt[0].weight == 2.5
    assert made.training.cpt.learning_rate == 3e-4


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.sed=7", "¿quisiste decir «training.seed»?"),
        ("training.cpt.learning_rat=1", "¿quisiste decir «training.cpt.learning_rate»?"),
        ("training.seed", "espera clave=valor"),
        ("training.seed=siete", "debe ser un número entero"),
        ("training.seed=[", "no es YAML válido"),
        ("training.noise_scale=0.5", "0.03 o menos"),
        ("training.stochastic_depth=2", "1.0 o menos"),
        ("data.cpt.4.weight=1", "no es un índice"),
        ("name.algo=1", "no tiene claves dentro"),
        ("training.cpt.batch_tokens=1000", "múltiplo de context_tokens"),
        ("training.cpt.schedule=lineal", "solo admite 'wsd' o 'cosine'"),
        ("training.cpt.learning_rate=.inf", "número finito"),
        ("compute.provider=runpod", "budget_usd"),
        ("name=Mi modelo", "minúsculas"),
        ("data.cpt=[]", "data.cpt está vacía"),
        ("data.cpt.0.hub=org/otro", "uno y solo uno"),
    ],
)
def test_a_mistake_names_the_key_and_the_way_out(override: str, message: str):
    with pytest.raises(ConfigError) as caught:
        parse(override)
    assert message in str(caught.value)
    assert override.partition("=")[0].split(".")[-1] in str(caught.value) or "data" in override


def test_nothing_to_train_is_refused():
    with pytest.raises(ConfigError, match="nada que entrenar"):
        parse("training.cpt.enabled=false", "training.sft.enabled=false")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"name: [", "no es YAML v.lido .l.nea 1"),
        (b"name: caf\xe9\n", "no es texto UTF-8"),
        (b"- una\n- lista\n", "debe ser un mapa"),
        (b"", "debe ser un mapa"),
    ],
)
def test_an_unreadable_file_is_explained(tmp_path: Path, content: bytes, message: str):
    path = tmp_path / "mala.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        config.load(path)


def test_a_missing_file_or_a_folder_is_explained(tmp_path: Path):
    with pytest.raises(ConfigError, match="No existe la configuración"):
        config.load(tmp_path / "nada.yaml")
    with pytest.raises(ConfigError, match="es una carpeta"):
        config.load(tmp_path)


def test_the_hash_depends_on_values_alone(tmp_path: Path):
    one, two = tmp_path / "a.yaml", tmp_path / "b.yaml"
    text = "name: x\nmodel: {base: m/n}\ndata: {cpt: [{hub: a/b}], sft: [{hub: c/d}]}\n"
    one.write_text(text)
    two.write_text("# otro comentario\n" + "\n".join(reversed(text.splitlines())))
    assert config.load(one).sha256 == config.load(two).sha256
    assert config.load(one).sha256 != config.load(one, ["training.seed=5"]).sha256


def test_paths_become_absolute_from_the_configuration_folder(tmp_path: Path, monkeypatch):
    (tmp_path / "textos").mkdir()
    path = tmp_path / "x.yaml"
    path.write_text("name: x\nmodel: {base: ./mio}\ndata: {cpt: [{path: textos}]}\n")
    (tmp_path / "cwd" / "mio").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "cwd")
    made = config.load(path, ["training.sft.enabled=false"])
    assert made.data.cpt[0].path == str(tmp_path / "textos")
    assert made.model.base == str(tmp_path / "cwd" / "mio")


def test_a_hub_id_is_not_taken_for_a_path():
    assert parse("model.base=Qwen/Qwen2.5-0.5B").model.base == "Qwen/Qwen2.5-0.5B"


def test_the_resolved_yaml_gives_the_same_configuration():
    import yaml

    made = parse("training.seed=9")
    assert config.parse(yaml.safe_load(made.to_yaml()), origin="otra").sha256 == made.sha256


def test_the_schema_forbids_unknown_keys():
    schema = config.json_schema()
    assert schema["additionalProperties"] is False
    assert "stochastic_depth" in schema["$defs"]["TrainingSection"]["properties"]


def every_key(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        inner = [a for a in (field.annotation, *get_args(field.annotation)) if isinstance(a, type)]
        sections = [a for a in inner if issubclass(a, BaseModel)]
        yield prefix + name
        for section in sections:
            yield from every_key(section, f"{prefix}{name}.")


@pytest.mark.parametrize("key", sorted({key.rpartition(".")[2] for key in every_key(Config)}))
def test_no_key_is_read_by_nothing(key):
    """A key that no code outside the configuration reads would be a promise without effect."""
    root = Path(__file__).parents[2]
    sources = [
        path
        for folder in ("cli", "elchat", "scripts")
        for path in (root / folder).rglob("*.py")
        if path.name != "config.py" or folder == "cli"
    ]
    reads = re.compile(rf"\.{key}\b|[\"']{key}[\"']")
    assert any(reads.search(path.read_text(encoding="utf-8")) for path in sources), key
