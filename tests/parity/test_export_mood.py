"""`elchat export --mood`: an ordinary model that has our logits under that mood."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from elchat.autonomy import Settings, store
from elchat.autonomy.conversation import with_axes
from elchat.autonomy.effects import Span, StretchHook
from elchat.autonomy.fold import preset
from elchat.autonomy.mood import AXES
from elchat.gpt import GPT
from elchat.weights import load_model, save_hf
from scripts import export as script
from tests import autonomy_toys, toys
from tests.parity import llama_cpp

TEXT = "El niño comió 1998 piñas en la montaña; ¿quién eres?\n\n  Fin"


def taught(folder: Path, family: str) -> Path:
    """A toy model with a mood beside it."""
    loaded = toys.loaded(family, n_layers=4)
    save_hf(loaded, folder, dtype=torch.float32)
    mood = autonomy_toys.mood(shape=loaded.model.config)
    made = replace(
        autonomy_toys.autonomy(),
        shape=loaded.model.config,
        mood=mood,
        volition=None,
        settings=Settings(mood_gain=1.3),
    )
    store.save(made, folder)
    return folder


@torch.no_grad()
def frozen_logits(model: GPT, folder: Path, name: str, ids: list[int]) -> torch.Tensor:
    """Ours, with that mood on every token, [T, V]."""
    autonomy = store.load(folder, model.config)
    assert autonomy.mood is not None
    talk = autonomy.open()
    axes = preset(name)
    vector = with_axes(autonomy.mood.home.numpy(), {axis: axes.get(axis, 0.0) for axis in AXES})
    effects = talk.effects_of(autonomy.settings, 0, vector)
    span = Span(0, len(ids), len(ids), lambda: effects)
    hook = StretchHook([span], 0, len(ids), autonomy.place)
    return model(torch.tensor([ids]), hook=hook)[0]


@pytest.mark.parametrize("family", ["smollm", "qwen"])
def test_transformers_has_our_logits_under_that_mood(tmp_path: Path, family: str):
    from transformers import AutoModelForCausalLM

    folder = taught(tmp_path / "m", family)
    out = tmp_path / "out"
    words = [str(folder), "--to=hf", "--type=f32", f"--out={out}", "--mood=alegre"]
    assert script.main(words) == 0
    theirs = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32).eval()
    ours = load_model(folder)
    ids = ours.tokenizer.encode(TEXT)
    with torch.no_grad():
        found = theirs(torch.tensor([ids])).logits[0]
        plain = ours.model(torch.tensor([ids]))[0]
    torch.testing.assert_close(
        found, frozen_logits(ours.model, folder, "alegre", ids), atol=1e-4, rtol=1e-4
    )
    assert not torch.allclose(found, plain, atol=1e-2)


@pytest.mark.parametrize("family", ["smollm", "qwen"])
def test_llama_cpp_has_our_logits_under_that_mood(tmp_path: Path, family: str):
    folder = taught(tmp_path / "m", family)
    out = tmp_path / "out"
    words = [str(folder), "--to=gguf", "--type=f16", f"--out={out}", "--mood=triste"]
    assert script.main(words) == 0
    [path] = out.glob("*-triste.F16.gguf")
    ours = load_model(folder)
    ids = ours.tokenizer.encode(TEXT)
    with llama_cpp.server(path) as ask:
        theirs, best = llama_cpp.greedy(ask, ids, 12)
    logits = frozen_logits(ours.model, folder, "triste", ids + theirs[:-1])
    logprobs = logits[len(ids) - 1 :].log_softmax(-1)
    found = [abs(v - float(logprobs[step, i])) for step, five in best for i, v in five.items()]
    assert len(found) >= 30
    assert max(found) <= 0.06  # weights and cache in 16 bits


def test_a_model_without_a_mood_says_so_and_writes_nothing(tmp_path: Path, capsys):
    save_hf(toys.loaded("smollm"), tmp_path / "m", dtype=torch.float32)
    out = tmp_path / "out"
    for name, said in (("alegre", "no tiene estado de ánimo"), ("azul", "No hay un humor «azul»")):
        assert script.main([str(tmp_path / "m"), "--to=hf", f"--out={out}", f"--mood={name}"])
        assert said in capsys.readouterr().err
        assert not out.exists()
