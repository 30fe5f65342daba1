"""The shipped configurations: valid, complete and explained."""

from __future__ import annotations

import re
import typing
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from elchat import bases, config, hardware
from elchat.config import Config, SourceSection

CONFIGS = Path(__file__).parents[2] / "configs"
NAMES = (
    "experimental", "5usd", "10usd", "10usd_fast", "quality", "unaligned", "llama", "local", "demo",
)  # fmt: skip
BUDGETS = {
    "experimental": 1.5, "5usd": 5, "10usd": 10, "10usd_fast": 10, "quality": 25, "unaligned": 10,
    "llama": 15,
}  # fmt: skip


def path_of(name: str) -> Path:
    return CONFIGS / f"training_{name}.yaml"


def test_the_folder_holds_exactly_these():
    assert {p.name for p in CONFIGS.glob("*.yaml")} == {path_of(name).name for name in NAMES}


@pytest.mark.parametrize("name", NAMES)
def test_it_is_valid_and_named_as_its_file(name: str):
    loaded = config.load(path_of(name))
    assert loaded.name == name
    assert loaded.description


@pytest.mark.parametrize("name", NAMES)
def test_every_key_of_every_section_is_there(name: str):
    raw = yaml.safe_load(path_of(name).read_text(encoding="utf-8"))
    assert list(missing_keys(Config, raw)) == []


def missing_keys(model: type[BaseModel], raw: dict[str, Any], prefix: str = "") -> Any:
    """Keys of a section, and of the sections inside it, that the YAML does not write."""
    for key, field in model.model_fields.items():
        if key not in raw:
            yield prefix + key
        elif is_section(field.annotation):
            yield from missing_keys(field.annotation, raw[key], f"{prefix}{key}.")  # type: ignore[arg-type]


def is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def test_missing_keys_sees_a_missing_key():
    raw = yaml.safe_load(path_of("demo").read_text(encoding="utf-8"))
    del raw["training"]["sft"]["clip_norm"]
    del raw["export"]
    assert list(missing_keys(Config, raw)) == ["training.sft.clip_norm", "export"]


@pytest.mark.parametrize("name", NAMES)
def test_every_key_is_explained_in_its_line(name: str):
    text = path_of(name).read_text(encoding="utf-8")
    assert [line for line in text.splitlines() if is_unexplained(line)] == []
    legend = text[text.index("Cada fuente admite") : text.index("  cpt:")]
    assert [key for key in SourceSection.model_fields if not re.search(rf"\b{key}\b", legend)] == []


SOURCE_KEY = re.compile(rf"^ +(- )?({'|'.join(SourceSection.model_fields)}):")


def is_unexplained(line: str) -> bool:
    """A line with a key and no comment; keys of sources are explained once, in the legend."""
    is_key = re.match(r"^ *[a-z_]+:", line) is not None
    return is_key and not re.search(r"  # \S", line) and not SOURCE_KEY.match(line)


def test_is_unexplained_sees_a_bare_key():
    assert is_unexplained("  seed: 1234")
    assert not is_unexplained("  seed: 1234  # semilla")
    assert not is_unexplained("      weight: 3")


@pytest.mark.parametrize("name", NAMES)
def test_models_gpus_and_contexts_exist(name: str):
    loaded = config.load(path_of(name))
    shape = bases.get(loaded.model.base).shape
    assert loaded.training.cpt.context_tokens <= shape.max_positions
    assert loaded.training.sft.context_tokens <= shape.max_positions
    assert all(hardware.gpu_by_id(gpu) for gpu in loaded.compute.gpus)


@pytest.mark.parametrize("name", NAMES)
def test_every_source_names_its_licence_and_replays_english(name: str):
    loaded = config.load(path_of(name))
    everything = [*loaded.data.cpt, *loaded.data.sft, *loaded.data.held_out.english]
    assert [s for s in everything if s.licence == "desconocida"] == []
    english = sum(s.weight for s in loaded.data.cpt if s.language == "en")
    assert 0.1 < english / sum(s.weight for s in loaded.data.cpt) < 0.3
    assert all(s.max_mb for s in everything if s.hub)


@pytest.mark.parametrize("name", NAMES)
def test_money(name: str):
    compute = config.load(path_of(name)).compute
    assert compute.budget_usd == BUDGETS.get(name)
    assert compute.provider == ("runpod" if name in BUDGETS else "local")


def test_autonomy_is_on_only_where_it_is_the_point():
    knobs = {
        name: (t.stochastic_depth, t.noise_scale, t.mood_dim, t.stochastic_temp_var)
        for name in NAMES
        for t in [config.load(path_of(name)).training]
    }
    assert knobs["unaligned"] == (0.1, 0.01, 64, 0.2)
    assert all(x > 0 for x in knobs["experimental"])
    others = set(NAMES) - {"unaligned", "experimental"}
    assert {knobs[name] for name in others} == {(0.0, 0.0, 0, 0.0)}


def test_the_demo_needs_nothing_but_this_repository():
    demo = config.load(path_of("demo"))
    everything = [*demo.data.cpt, *demo.data.sft, *demo.data.held_out.english]
    assert all(source.path and Path(source.path).exists() for source in everything)
    assert bases.get(demo.model.base).wheels[demo.model.start]


def test_annotations_used_here_still_mean_sections():
    assert is_section(typing.get_type_hints(Config)["training"])
