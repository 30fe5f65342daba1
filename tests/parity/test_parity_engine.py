"""Greedy replies of the real SmolLM2-135M against `transformers`, 256 tokens on 20 prompts.

    ELCHAT_TEST_GGUF=smollm2.gguf pytest -m slow tests/parity/test_parity_engine.py

transformers reads prompt and reply in one pass and must choose, at every position, the token the
engine wrote: by induction, that is its own greedy reply. In bf16, read and written as transformers
does, every logit is the same bit for bit; in a batch the order of the sums differs, and the two may
part, but only where the two choices are nearer than one step of bf16 at their size.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
import torch

from elchat import native
from elchat.engine import Engine, Request
from elchat.runner import Rows
from elchat.sampling import SamplingParams
from elchat.scheduler import Scheduler
from elchat.weights import load_model, save_hf

N_TOKENS = 256
PROMPTS = (
    "¿Cuál es la capital de Francia?",
    "Escribe un poema sobre el mar.",
    "Explica por qué llueve.",
    "¿Quién escribió el Quijote?",
    "Dame una receta de tortilla de patatas.",
    "Cuenta un cuento corto sobre un pingüino.",
    "¿Qué es la fotosíntesis?",
    "Traduce al inglés: «mañana iremos a la montaña».",
    "¿Cómo se hace el pan?",
    "Háblame de la historia de España.",
    "¿Por qué el cielo es azul?",
    "Escribe una carta a un amigo.",
    "¿Cuántos días tiene un año bisiesto?",
    "Dime tres consejos para dormir mejor.",
    "¿Qué diferencia hay entre un río y un lago?",
    "Resume la Segunda Guerra Mundial.",
    "Inventa un diálogo entre un gato y un perro.",
    "¿Qué significa la palabra «siesta»?",
    "Explícame las fracciones como a un niño.",
    "¿Cuál es la montaña más alta del mundo?",
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]


@pytest.fixture(scope="module")
def gguf() -> Path:
    path = Path(os.environ.get("ELCHAT_TEST_GGUF", "/nonexistent"))
    if not path.is_file():
        pytest.skip("hace falta ELCHAT_TEST_GGUF con un GGUF de SmolLM2-135M")
    return path


@pytest.fixture(scope="module")
def folder(gguf, tmp_path_factory):
    found = tmp_path_factory.mktemp("hf") / "model"
    save_hf(load_model(gguf), found, dtype=torch.float32)
    return found


@pytest.fixture(scope="module")
def peer(folder):
    transformers = pytest.importorskip("transformers")
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def replies(engine: Engine, *, max_rows: int) -> list[tuple[list[int], list[int]]]:
    params = SamplingParams(temperature=0.0, max_new_tokens=N_TOKENS, logprobs=0)
    found: list[tuple[list[int], list[int]]] = []
    scheduler = Scheduler(engine, max_rows=max_rows, max_queue=len(PROMPTS))
    streams = []
    for text in PROMPTS:
        ids = engine.prompt([{"role": "user", "content": text}], N_TOKENS).ids
        events: list = []
        scheduler.submit(Request(ids, params, frozenset()), events.append)
        streams.append((ids, events))
    while any(not events or events[-1].finish is None for _, events in streams):
        time.sleep(0.05)
    scheduler.close()
    for ids, events in streams:
        found.append((ids, [t.id for e in events for t in e.tokens]))
    return found


def first_partings(peer, found: list[tuple[list[int], list[int]]]) -> list[tuple[int, int, int]]:
    """Reply, step and the peer's own token, where it would first have written another."""
    parted = []
    for i, (ids, written) in enumerate(found):
        assert len(written) == N_TOKENS
        with torch.inference_mode():
            choices = peer(torch.tensor([ids + written])).logits[0, len(ids) - 1 : -1].argmax(-1)
        apart = (choices != torch.tensor(written)).nonzero()
        if len(apart):
            step = int(apart[0])
            parted.append((i, step, int(choices[step])))
    return parted


@pytest.mark.parametrize("is_compiled", [False, True])
def test_greedy_tokens_equal_transformers(gguf, peer, is_compiled):
    if is_compiled and native.why_not() is not None:
        pytest.skip(str(native.why_not()))
    loaded = load_model(gguf)
    engine = Engine(
        loaded.model, loaded.tokenizer, loaded.chat, context_tokens=1024, compile=is_compiled
    )
    assert first_partings(peer, replies(engine, max_rows=10)) == []


@pytest.fixture(scope="module")
def peer_bf16(folder):
    # Loaded so, and not turned with `.to`, which would round the frequencies of the rotation too.
    transformers = pytest.importorskip("transformers")
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()


def test_bf16_logits_equal_transformers_bit_for_bit(gguf, peer_bf16):
    transformers = pytest.importorskip("transformers")
    loaded = load_model(gguf)
    engine = Engine(
        loaded.model, loaded.tokenizer, loaded.chat, context_tokens=1024, weights="bf16"
    )
    runner, every = engine.runner(1, 1024), range(engine.config.n_layers)
    for text in PROMPTS[:4]:
        ids = engine.prompt([{"role": "user", "content": text}], N_TOKENS).ids
        cache, position = transformers.DynamicCache(), 0
        for _ in range(64):
            with torch.inference_mode():
                out = peer_bf16(torch.tensor([ids]), past_key_values=cache, use_cache=True)
                x = runner.run_layers(runner.embed([ids]), Rows((0,), (position,)), every)
                _, logits = runner.finish(x[0, -1:])
            assert torch.equal(logits[0], out.logits[0, -1].float()), (text, position)
            position += len(ids)
            ids = [int(logits[0].argmax())]


def test_bf16_parts_from_transformers_only_at_near_ties(gguf, peer_bf16):
    """One reply at a time, as transformers writes: a batch adds its sums in another order."""
    loaded = load_model(gguf)
    engine = Engine(
        loaded.model, loaded.tokenizer, loaded.chat, context_tokens=1024, weights="bf16"
    )
    found = replies(engine, max_rows=1)
    gaps = []
    for i, (ids, written) in enumerate(found):
        parting = first_parting(peer_bf16, ids, written)
        if parting is None:
            continue
        step, theirs, state = parting
        # Logits of the model in bf16 before they are rounded to it, which makes ties of them.
        logits = peer_bf16.lm_head.weight.float() @ state.float()
        resolution = float(torch.finfo(torch.bfloat16).eps) * 2.0 ** int(logits.max().log2())
        gap = abs(float(logits[theirs] - logits[written[step]]))  # at least that of the top two
        gaps.append((i, step, gap, resolution))
        print(f"prompt {i}, token {step}: {gap:.4f} apart, bf16 tells {resolution:.4f}", flush=True)
    print(f"{len(PROMPTS) - len(gaps)} of {len(PROMPTS)} replies equal in bf16")
    assert [gap for gap in gaps if gap[2] >= gap[3]] == []


def first_parting(peer, ids: list[int], written: list[int]) -> tuple[int, int, torch.Tensor] | None:
    """Step, the peer's token and its last state where it would write another, read as it writes.

    A pass over the whole reply would not do: in bf16 it rounds otherwise than token by token.
    """
    import transformers

    cache = transformers.DynamicCache()
    with torch.inference_mode():
        for step, token in enumerate(written):
            read = ids if step == 0 else written[step - 1 : step]
            out = peer.model(torch.tensor([read]), past_key_values=cache, use_cache=True)
            state = out.last_hidden_state[0, -1]
            theirs = int(peer.lm_head(state[None])[0].argmax())
            if theirs != token:
                return step, theirs, state
    return None
