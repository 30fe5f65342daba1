"""Random weights in the exact published shapes; both sides share the memory."""

import gc

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from elchat import bases
from elchat.gpt import GPT
from elchat.model_config import config_to_hf
from tests import toys


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("key", bases.BASES)
def test_published_shape(key: str) -> None:
    base = bases.get(key)
    needed = 1.3 * 4 * base.shape.n_params
    available = _available_bytes()
    if available < needed:
        pytest.skip(f"hacen falta {needed / 1e9:.0f} GB libres y hay {available / 1e9:.0f}")
    hf = config_to_hf(base.shape, bos_id=1, eos_ids=[2], pad_id=2, dtype="float32")
    config = AutoConfig.for_model(**hf)
    with torch.device("meta"):
        theirs = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
        ours = GPT(base.shape)
    generator = torch.Generator().manual_seed(0)
    state = {}
    for name, value in ours.state_dict().items():
        center, std = (1.0, 0.1) if name.endswith("norm.weight") else (0.0, 0.03)
        state[name] = torch.empty(value.shape).normal_(center, std, generator=generator)
    assert sum(v.numel() for v in state.values()) == base.shape.n_params
    ours.load_state_dict(state, assign=True)
    theirs.load_state_dict(state, assign=True, strict=False)
    theirs.tie_weights()
    theirs.model.rotary_emb = type(theirs.model.rotary_emb)(config)  # its table was on meta
    assert not [n for n, p in theirs.named_parameters() if p.is_meta]
    ids = torch.randint(0, base.shape.vocab_size, (1, 24), generator=generator)
    expected, got = toys.logits(theirs.eval(), ids), toys.logits(ours.eval(), ids)
    assert expected.std() > 0.05
    assert (got - expected).abs().max() <= 1e-4 * max(1.0, float(expected.abs().max()))
    del ours, theirs, state
    gc.collect()


def _available_bytes() -> float:
    with open("/proc/meminfo") as handle:
        fields = dict(line.split(":", 1) for line in handle)
    return float(fields["MemAvailable"].split()[0]) * 1024
