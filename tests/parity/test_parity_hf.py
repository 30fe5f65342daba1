"""Logits against transformers, both directions, for tiny random models of every architecture."""

from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from elchat.model_config import config_from_hf
from elchat.weights import load_model, save_hf
from tests import toys

TOLERANCE = 1e-4

SHAPE = dict(
    vocab_size=448,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=128,
    attn_implementation="eager",
)
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}


def reference(family: str, is_tied: bool) -> torch.nn.Module:
    """A transformers model written with its own configuration, not through ours."""
    if family == "qwen":
        config = Qwen2Config(
            **SHAPE, tie_word_embeddings=is_tied, rope_theta=1e6, rms_norm_eps=1e-6
        )
        model = Qwen2ForCausalLM(config)
    else:
        extra = dict(rope_theta=1e5)
        if family == "llama":
            extra = dict(rope_theta=5e5, head_dim=32, rope_scaling=LLAMA3_ROPE)
        config = LlamaConfig(
            **SHAPE, tie_word_embeddings=is_tied, rms_norm_eps=1e-5, attention_bias=False, **extra
        )
        model = LlamaForCausalLM(config)
    toys.randomise(model, seed=3)
    return model.eval()


def write(model: torch.nn.Module, family: str, path: Path, shard: str = "1GB") -> None:
    model.save_pretrained(path, max_shard_size=shard)
    (path / "tokenizer.json").write_text(toys.tokenizer_json(family), encoding="utf-8")


CASES = [(family, is_tied) for family in toys.FAMILIES for is_tied in (True, False)]


@pytest.mark.parametrize(("family", "is_tied"), CASES)
def test_transformers_folder_into_elchat(tmp_path: Path, family: str, is_tied: bool) -> None:
    theirs = reference(family, is_tied)
    write(theirs, family, tmp_path / "m")
    ours = load_model(tmp_path / "m")
    assert ours.model.config.is_tied is is_tied
    ids = toys.ids()
    expected = toys.logits(theirs, ids)
    assert expected.std() > 0.1  # a model whose logits are all alike proves nothing
    assert (toys.logits(ours.model, ids) - expected).abs().max() <= TOLERANCE


@pytest.mark.parametrize(("family", "is_tied"), CASES)
def test_sharded_folder(tmp_path: Path, family: str, is_tied: bool) -> None:
    theirs = reference(family, is_tied)
    write(theirs, family, tmp_path / "m", shard="150KB")
    assert len(list((tmp_path / "m").glob("model-*.safetensors"))) > 2
    ids = toys.ids()
    ours = toys.logits(load_model(tmp_path / "m").model, ids)
    assert (ours - toys.logits(theirs, ids)).abs().max() <= TOLERANCE


@pytest.mark.parametrize(("family", "is_tied"), CASES)
def test_elchat_folder_into_transformers(tmp_path: Path, family: str, is_tied: bool) -> None:
    ours = toys.loaded(family, is_tied=is_tied, seed=5)
    save_hf(ours, tmp_path / "m", dtype=torch.float32)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "m", dtype=torch.float32).eval()
    ids = toys.ids(1)
    expected = toys.logits(theirs, ids)
    assert (toys.logits(ours.model, ids) - expected).abs().max() <= TOLERANCE
    again = load_model(tmp_path / "m")
    assert torch.equal(toys.logits(again.model, ids), toys.logits(ours.model, ids))
    assert again.model.config == ours.model.config


@pytest.mark.parametrize("family", toys.FAMILIES)
def test_bfloat16_folder_is_the_rounded_model(tmp_path: Path, family: str) -> None:
    ours = toys.loaded(family)
    save_hf(ours, tmp_path / "m", dtype=torch.bfloat16)
    again = load_model(tmp_path / "m", dtype=torch.float32)
    for name, value in ours.model.state_dict().items():
        assert torch.equal(again.model.state_dict()[name], value.bfloat16().float()), name
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "m", dtype="auto")
    assert theirs.dtype == torch.bfloat16
    stored = load_model(tmp_path / "m", dtype=torch.bfloat16)
    assert {p.dtype for p in stored.model.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("family", toys.FAMILIES)
def test_transformers_reads_our_tokenizer_template_and_ids(tmp_path: Path, family: str) -> None:
    ours = toys.loaded(family)
    ours.chat = type(ours.chat).for_tokenizer(ours.family, ours.tokenizer, "Eres 'elchat'.\n")
    save_hf(ours, tmp_path / "m", dtype=torch.float32)
    theirs = AutoTokenizer.from_pretrained(tmp_path / "m")
    messages = [
        {"role": "user", "content": "¿Quién eres en 1998?"},
        {"role": "assistant", "content": "Soy yo."},
        {"role": "user", "content": "Vale"},
    ]
    expected = ours.chat.render(messages, add_generation_prompt=True).ids
    assert theirs.apply_chat_template(messages, add_generation_prompt=True) == expected
    assert (theirs.eos_token_id, theirs.pad_token_id, theirs.bos_token_id) == (
        ours.chat_eos_ids[0],
        ours.pad_id,
        ours.bos_id,
    )
    text = "Hola, año 1998"
    prefix = list(ours.doc_prefix_ids) if ours.family == "llama3" else []
    assert theirs(text)["input_ids"] == prefix + ours.tokenizer.encode(text)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "m")
    assert model.generation_config.eos_token_id == list(ours.chat_eos_ids)
    assert model.generation_config.pad_token_id == ours.pad_id
    assert model.config.eos_token_id == ours.chat_eos_ids[0]


def test_newer_transformers_nests_rope_parameters(tmp_path: Path) -> None:
    """Version 5 writes theta and scaling under rope_parameters."""
    config = reference("llama", True).config.to_dict()
    expected = config_from_hf(config)
    rope = config.pop("rope_scaling") | {"rope_theta": config.pop("rope_theta")}
    assert config_from_hf(config | {"rope_parameters": rope}) == expected
