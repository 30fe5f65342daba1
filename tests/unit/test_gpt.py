from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from elchat.attention import Segments
from elchat.errors import ModelError
from elchat.gpt import GPT, KVCache, rope_inv_freq, rotate
from elchat.model_config import RopeScaling, config_from_hf, config_to_hf
from tests.conftest import TINY, make_tiny

VARIANTS = {
    "tied": TINY,
    "untied": replace(TINY, is_tied=False),
    "qkv bias": replace(TINY, has_qkv_bias=True, model_type="qwen2"),
    "no gqa": replace(TINY, n_kv_heads=4),
    "wide heads": replace(TINY, head_dim=16),
    "all biases": replace(TINY, has_qkv_bias=True, has_o_bias=True, has_mlp_bias=True),
}


@pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS.keys())
def test_parameter_count_matches_the_shape(config):
    assert sum(p.numel() for p in GPT(config).parameters()) == config.n_params


@pytest.mark.parametrize("chunks", [[20], [7, 8, 5], [19, 1], [1] * 20])
def test_cached_equals_uncached(tiny_model, chunks):
    ids = torch.randint(0, TINY.vocab_size, (2, 20), generator=torch.Generator().manual_seed(1))
    cache = KVCache(TINY, rows=2, max_tokens=32)
    pieces = [tiny_model(part, cache=cache) for part in ids.split(chunks, dim=1)]
    torch.testing.assert_close(torch.cat(pieces, 1), tiny_model(ids), rtol=1e-5, atol=1e-5)


def test_truncated_cache_forgets(tiny_model):
    ids = torch.randint(0, TINY.vocab_size, (1, 12))
    cache = KVCache(TINY, rows=1, max_tokens=32)
    tiny_model(ids, cache=cache)
    cache.truncate(5)
    again = tiny_model(ids[:, 5:], cache=cache)
    torch.testing.assert_close(again, tiny_model(ids)[:, 5:], rtol=1e-5, atol=1e-5)


def test_packed_segments_do_not_see_each_other(tiny_model):
    ids = torch.randint(0, TINY.vocab_size, (1, 20))
    segments = torch.tensor([[1] * 8 + [2] * 9 + [0] * 3])
    positions = torch.cat([torch.arange(8), torch.arange(9), torch.arange(3)])[None]
    packed = tiny_model(ids, positions_BT=positions, segments=Segments.of(segments, "cpu"))
    alone = torch.cat([tiny_model(ids[:, :8]), tiny_model(ids[:, 8:17])], 1)
    torch.testing.assert_close(packed[:, :17], alone, rtol=1e-5, atol=1e-5)
    assert packed.isfinite().all()


def test_activation_checkpointing_changes_no_gradient(tiny_model):
    ids = torch.randint(0, TINY.vocab_size, (2, 16))
    gradients = []
    for is_on in (False, True):
        tiny_model.uses_activation_checkpointing = is_on
        tiny_model.train()
        tiny_model.zero_grad()
        tiny_model(ids).square().mean().backward()
        gradients.append([p.grad.clone() for p in tiny_model.parameters()])
    for plain, checkpointed in zip(*gradients, strict=True):
        assert torch.equal(plain, checkpointed)


def test_too_long_a_sequence_is_one_sentence(tiny_model):
    with pytest.raises(ModelError, match="65 tokens y solo caben 64"):
        tiny_model(torch.zeros(1, 65, dtype=torch.long))


def test_rotation_keeps_norms_and_depends_on_distance_only():
    d = 8
    q, k = torch.randn(d), torch.randn(d)
    inv_freq = rope_inv_freq(TINY)

    def score(query_at, key_at):
        def turn(x, at):
            angles = torch.tensor([float(at)])[:, None] * inv_freq.repeat(2)
            return rotate(x.view(1, 1, 1, d), angles.cos()[None, None], angles.sin()[None, None])

        return (turn(q, query_at) * turn(k, key_at)).sum()

    torch.testing.assert_close(score(9, 4), score(25, 20), rtol=1e-4, atol=1e-5)
    assert not torch.isclose(score(9, 4), score(9, 5))


def test_config_survives_hugging_face_json():
    config = replace(TINY, rope_scaling=RopeScaling(32.0, 1.0, 4.0, 8192), max_positions=131_072)
    hf = config_to_hf(config, bos_id=1, eos_ids=[2], pad_id=0, dtype="float32")
    assert config_from_hf(hf) == config


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"model_type": "gpt2"}, "«gpt2»"),
        ({"use_sliding_window": True}, "ventana deslizante"),
        ({"hidden_act": "gelu"}, "«gelu»"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "«yarn»"),
        ({"vocab_size": None}, "«vocab_size»"),
        ({"num_key_value_heads": 3}, "múltiplo"),
    ],
)
def test_unsupported_architectures_are_named(change, sentence):
    hf = config_to_hf(TINY, bos_id=1, eos_ids=[2], pad_id=0, dtype="float32") | change
    with pytest.raises(ModelError, match=sentence):
        config_from_hf(hf)


def test_two_seeds_two_models():
    a, b = make_tiny(seed=0), make_tiny(seed=1)
    assert not torch.equal(a.model.embed_tokens.weight, b.model.embed_tokens.weight)


@pytest.mark.parametrize("is_packed", [True, False])
@pytest.mark.parametrize("is_checkpointed", [True, False])
def test_no_pass_asks_the_device_for_a_value(is_packed, is_checkpointed):
    """On `meta` nothing is computed: a value asked for would raise, as it would stall a GPU."""
    model = GPT(TINY).to("meta").train()
    model.uses_activation_checkpointing = is_checkpointed
    ids = torch.zeros(2, 32, dtype=torch.long, device="meta")
    segments = Segments.of(torch.arange(32).expand(2, 32) // 10, "meta") if is_packed else None
    hidden = model.hidden(ids, positions_BT=ids, segments=segments)
    hidden.sum().backward()
    for parameter in model.parameters():
        assert parameter.grad is not None
        assert parameter.grad.shape == parameter.shape


def test_decoding_asks_the_device_for_no_value_either():
    model = GPT(TINY).to("meta", torch.bfloat16).eval()
    cache = KVCache(TINY, 1, 16, dtype=torch.bfloat16, device="meta")
    ids = torch.zeros(1, 4, dtype=torch.long, device="meta")
    model(ids, cache=cache)
    assert model(ids[:, :1], cache=cache).shape == (1, 1, TINY.vocab_size)
    assert cache.length == 5
