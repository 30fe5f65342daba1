"""Exports: read back, compared, described; a mismatch leaves nothing."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
import yaml

from elchat.errors import ConfigError, DiskError, ModelError
from elchat.export import bundle, gguf_writer, licences, ollama, verify
from elchat.export.gguf_writer import permute, stored_kind, stored_state, write_gguf
from elchat.export.shapes import expressible, expressible_config
from elchat.gguf_reader import open_gguf, unpermute
from elchat.model_config import RopeScaling
from elchat.tokenizer import Tokenizer
from elchat.weights import LoadedModel, build_loaded, load_model
from scripts import export as script
from tests import toys

# Llama's divisors in a GGUF say only the published constants.
SCALED = {"rope_scaling": RopeScaling(32.0, 1.0, 4.0, 8_192)}
GPT2_SPLIT = {
    "type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True,
}  # fmt: skip
KINDS = ("f16", "q8_0", "q4_0")
BIASES = {"has_qkv_bias": True, "has_o_bias": True, "has_mlp_bias": True}


def toy(family: str, **changes) -> LoadedModel:
    return toys.loaded(family, **(SCALED if family == "llama" else {}), **changes)


def same_bits(loaded: LoadedModel, state: dict[str, torch.Tensor]) -> bool:
    ours = loaded.model.state_dict()
    return ours.keys() == state.keys() and all(torch.equal(ours[k], state[k]) for k in state)


@pytest.mark.parametrize("is_tied", [True, False])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", toys.FAMILIES)
def test_a_gguf_holds_the_rounded_weights(tmp_path: Path, family, kind, is_tied):
    source = toy(family, is_tied=is_tied)
    done = bundle.export(source, "gguf", tmp_path / "out", name="juguete", kind=kind)
    [file] = done.path.glob("*.gguf")
    reread = load_model(file)
    assert reread.model.config == source.model.config
    assert same_bits(reread, stored_state(source.model, kind))
    assert not same_bits(source, stored_state(source.model, kind))  # rounding did something
    assert done.check.max_difference == 0
    assert done.check.greedy_tokens == 3 * verify.NEW_TOKENS
    written = {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(file).tensors}
    assert written["blk.0.ffn_up.weight"] == kind.upper()
    assert written["blk.0.attn_norm.weight"] == "F32"
    assert written["token_embd.weight"] == ("Q8_0" if kind == "q4_0" else kind.upper())
    assert ("output.weight" in written) is not is_tied
    assert ("rope_freqs.weight" in written) is (family == "llama")


@pytest.mark.parametrize("family", toys.FAMILIES)
def test_a_hugging_face_folder_is_the_same_model(tmp_path: Path, family):
    source = toy(family)
    done = bundle.export(source, "hf", tmp_path / "out", name="juguete", dtype=torch.float32)
    reread = load_model(done.path)
    assert same_bits(reread, source.model.state_dict())
    assert reread.licence == "CC0"
    assert done.check.source_agreement == 1.0


@pytest.mark.parametrize("family", ["smollm", "qwen"])
@pytest.mark.parametrize("target", ["hf", "gguf"])
def test_every_bias_survives(tmp_path: Path, family, target):
    source = toy(family, **BIASES)
    done = bundle.export(
        source, target, tmp_path / "out", name="juguete", kind="f16", dtype=torch.float32
    )
    path = done.path if target == "hf" else next(done.path.glob("*.gguf"))
    reread = load_model(path)
    assert reread.model.config.model_type == "llama"  # Qwen2 has no place for these
    logits = toys.logits(reread.model, toys.ids())
    expected = verify.with_state(source, stored_state(source.model, "f16")).model
    wanted = toys.logits(source.model if target == "hf" else expected, toys.ids())
    assert torch.equal(logits, wanted)
    without = {k: v for k, v in source.model.state_dict().items() if not k.endswith("bias")}
    assert len(without) < len(source.model.state_dict())


def test_zero_biases_are_added_where_a_format_says_them_together():
    source = toy("smollm", has_qkv_bias=True)
    whole = expressible(source)
    assert whole.model.config.has_o_bias
    assert torch.equal(toys.logits(whole.model, toys.ids()), toys.logits(source.model, toys.ids()))
    plain = toy("qwen")
    assert expressible(plain) is plain
    assert expressible_config(plain.model.config) == plain.model.config


def test_permute_is_the_inverse_of_unpermute():
    assert permute(np.array([0, 1, 2, 3]), 1).tolist() == [0, 2, 1, 3]
    values = np.random.default_rng(0).normal(size=(48, 5))
    assert np.array_equal(unpermute(permute(values, 3), 3), values)


def test_rows_that_do_not_divide_into_blocks_stay_in_16_bits(tmp_path: Path):
    assert stored_kind("model.layers.0.mlp.down_proj.weight", (64, 100), "q4_0").name == "F16"
    source = toy("smollm", d_ff=100)
    done = bundle.export(source, "gguf", tmp_path / "out", name="x", kind="q4_0")
    assert done.check.max_difference == 0


def test_metadata_that_other_programs_need(tmp_path: Path):
    source = toys.loaded("smollm")
    chat = type(source.chat)("chatml", source.tokenizer, "Eres un juguete.")
    source.chat = chat
    write_gguf(source, tmp_path / "m.gguf", "q8_0", name="juguete")
    meta = open_gguf(tmp_path / "m.gguf").metadata
    special = source.tokenizer.special_ids
    assert meta["general.name"] == "juguete"
    assert meta["general.license"] == "CC0"
    assert meta["tokenizer.ggml.pre"] == "smollm"
    assert meta["tokenizer.ggml.eos_token_id"] == special["<|im_end|>"]
    assert meta["tokenizer.ggml.add_bos_token"] is False
    assert meta["tokenizer.chat_template"] == chat.jinja_template()
    assert meta["llama.rope.dimension_count"] == source.model.config.head_dim
    assert meta["general.file_type"] == 7
    assert load_model(tmp_path / "m.gguf").chat.default_system == "Eres un juguete."


@pytest.mark.parametrize("family", toys.FAMILIES)
def test_each_family_names_its_word_splitter(tmp_path: Path, family):
    names = {"smollm": "smollm", "qwen": "qwen2", "llama": "llama-bpe"}
    assert gguf_writer.vocabulary_metadata(toy(family))["pre"] == names[family]


def test_a_vocabulary_llama_cpp_does_not_know_is_refused(tmp_path: Path):
    spec = json.loads(toys.tokenizer_json("smollm"))
    spec["pre_tokenizer"] = {**GPT2_SPLIT}
    other = toys.loaded("smollm")
    loaded = build_loaded(
        other.model, Tokenizer.from_json(json.dumps(spec)), origin="x", licence="CC0"
    )
    with pytest.raises(ModelError, match="usa --to hf"):
        bundle.export(loaded, "gguf", tmp_path / "out", name="x")
    assert list(tmp_path.iterdir()) == []
    assert bundle.export(loaded, "hf", tmp_path / "hf", name="x").path.is_dir()


def test_a_rope_scaling_a_gguf_cannot_say_is_refused(tmp_path: Path):
    with pytest.raises(ModelError, match="usa --to hf"):
        bundle.export(toys.loaded("llama"), "gguf", tmp_path / "out", name="x")
    assert list(tmp_path.iterdir()) == []


# --- mismatches --------------------------------------------------------------------------------


def swap_two_rows(values: np.ndarray, n_heads: int) -> np.ndarray:
    values = permute(values, n_heads)
    values[[0, 1]] = values[[1, 0]]
    return values


@pytest.mark.parametrize("target", ["gguf", "ollama"])
def test_a_wrong_file_fails_and_leaves_nothing(tmp_path: Path, monkeypatch, target):
    monkeypatch.setattr(gguf_writer, "permute", swap_two_rows)
    with pytest.raises(ModelError, match="no se lee igual que se escribió"):
        bundle.export(toy("smollm"), target, tmp_path / "out", name="x", kind="f16")
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_file_does_not_replace_the_export_before(tmp_path: Path, monkeypatch):
    out = tmp_path / "out"
    before = bundle.export(toy("smollm"), "gguf", out, name="x").files
    monkeypatch.setattr(gguf_writer, "permute", swap_two_rows)
    with pytest.raises(ModelError):
        bundle.export(toy("smollm"), "gguf", out, name="x")
    assert json.loads((out / bundle.MANIFEST).read_text())["files"] == before


def test_another_vocabulary_is_noticed(tmp_path: Path):
    source, other = toy("smollm"), toy("qwen")
    bundle.export(other, "hf", tmp_path / "out", name="x", dtype=torch.float32)
    state = source.model.state_dict()
    with pytest.raises(ModelError, match="vocabulario"):
        verify.verify(source, lambda: dict(state), tmp_path / "out", "x")


def test_another_default_system_message_is_noticed(tmp_path: Path):
    source = toy("smollm")
    bundle.export(source, "hf", tmp_path / "out", name="x", dtype=torch.float32)
    source.chat = type(source.chat)("chatml", source.tokenizer, "Otro.")
    with pytest.raises(ModelError, match="formato de conversación"):
        verify.verify(source, lambda: dict(source.model.state_dict()), tmp_path / "out", "x")


@pytest.mark.parametrize("target", bundle.TARGETS)
def test_a_full_disk_is_a_sentence_and_leaves_nothing(tmp_path: Path, monkeypatch, target):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(bundle.gguf_writer, "quantize", full)
    monkeypatch.setattr("elchat.weights.save_file", full)
    with pytest.raises(DiskError, match="El disco se llenó"):
        bundle.export(toy("smollm"), target, tmp_path / "out", name="x")
    assert list(tmp_path.iterdir()) == []


def test_no_room_is_said_before_writing(tmp_path: Path, monkeypatch):
    monkeypatch.setattr("elchat.files.free_bytes", lambda path: 1000)
    with pytest.raises(DiskError, match="No hay sitio"):
        bundle.export(toy("smollm"), "gguf", tmp_path / "out", name="x")
    assert not (tmp_path / "out").exists()


# --- what goes with the weights ------------------------------------------------------------------


def test_the_card_of_a_model_of_unknown_history(tmp_path: Path):
    done = bundle.export(toy("smollm"), "gguf", tmp_path / "out", name="juguete")
    card = (done.path / "README.md").read_text(encoding="utf-8")
    front = yaml.safe_load(card.split("---")[1])
    assert front["language"] == ["es"]
    assert front["license"] == "other"
    assert "Elchat no la conoce" in card
    assert "juguete.Q8_0.gguf" in card
    assert {"README.md", "juguete.Q8_0.gguf", bundle.MANIFEST} == {
        path.name for path in done.path.iterdir()
    }


def test_llama_s_obligations_travel_with_the_copy(tmp_path: Path):
    base = tmp_path / "base"
    base.mkdir()
    (base / "LICENSE.txt").write_text("LLAMA 3.2 COMMUNITY LICENSE AGREEMENT")
    source = toy("llama")
    source.licence = "Llama 3.2 Community License"
    done = bundle.export(source, "ollama", tmp_path / "out", name="mia", base_folder=base)
    card = (done.path / "README.md").read_text(encoding="utf-8")
    assert "**Built with Llama**" in card
    assert "license: llama3.2" in card
    assert "# Llama-mia" in card
    assert (done.path / "LICENSE.txt").read_text().startswith("LLAMA 3.2")
    assert "Copyright © Meta" in (done.path / "NOTICE.txt").read_text(encoding="utf-8")
    assert "Built with Llama" in (done.path / "Modelfile").read_text(encoding="utf-8")
    alone = licences.obligations("Llama 3.2 Community License", None, None)
    assert "Falta la copia de la licencia" in " ".join(alone.points)


def test_apache_s_licence_and_changes_are_stated(tmp_path: Path):
    duties = licences.obligations("Apache-2.0", "SmolLM2 135M", None)
    assert "Apache License" in duties.files["LICENSE.txt"]
    assert "SmolLM2 135M" in duties.files["NOTICE.txt"]
    assert "modificado" in duties.files["NOTICE.txt"]


@pytest.mark.parametrize("family", ["smollm", "llama"])
def test_the_modelfile_writes_what_the_chat_format_does(family):
    """Its Go template, filled in here for one exchange, is the text that training saw."""
    loaded = toy(family)
    text = ollama.modelfile(loaded, "m.gguf", "M", 'Con """comillas""".')
    assert text.splitlines()[1] == "FROM ./m.gguf"
    assert '"""Con ""comillas"".' in text
    template = ollama.TEMPLATES[loaded.family]
    head, _, rest = template.partition("{{- range .Messages }}")
    body, _, tail = rest.partition("{{ end }}")
    messages = [{"role": "user", "content": "¿Qué tal?"}]
    filled = head + "".join(
        body.replace("{{ .Role }}", m["role"]).replace("{{ .Content }}", m["content"])
        for m in messages
    )
    ids = loaded.chat.render(messages, add_generation_prompt=True).ids
    expected = loaded.tokenizer.decode(ids, keep_special=True)
    assert filled + tail == expected.removeprefix("<|begin_of_text|>")
    stops = {line.split('"')[1] for line in text.splitlines() if line.startswith("PARAMETER stop")}
    assert stops >= {"<|im_end|>"} if family == "smollm" else stops >= {"<|eot_id|>"}


# --- the command ---------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    bundle.export(toy("smollm"), "hf", tmp_path / "modelo", name="x", dtype=torch.float32)
    return tmp_path / "modelo"


def test_the_script_exports_and_says_so(folder: Path, tmp_path: Path, capsys):
    out = tmp_path / "salida"
    assert script.main([str(folder), "--to", "gguf", "--out", str(out), "--type", "F16"]) == 0
    assert "tokens sin azar iguales" in capsys.readouterr().out
    assert script.main([str(folder), "--to", "gguf", "--out", str(out)]) == 2
    assert "ya tiene una exportación" in capsys.readouterr().err
    assert script.main([str(folder), "--to=hf", f"--out={out}", "--force", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["check"]["max_difference"] == 0
    assert not list(out.glob("*.gguf"))


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        (["--to", "onnx"], 2, "solo admite hf, gguf, ollama"),
        (["--to", "gguf", "--type", "q2_k"], 2, "solo admite f16, q8_0, q4_0"),
        (["--to", "hf", "--type", "q8_0"], 2, "solo admite f16, bf16, f32"),
        (["--to", "hf", "--out", "{tmp}"], 2, "no es una exportación de elchat"),
        (["--to", "hf", "--out", "{tmp}", "--force"], 2, "no es una exportación de elchat"),
    ],
)
def test_mistakes_are_sentences(folder: Path, tmp_path: Path, words, code, sentence, capsys):
    words = [word.replace("{tmp}", str(tmp_path)) for word in words]
    assert script.main([str(folder), *words]) == code
    assert sentence in capsys.readouterr().err
    assert (folder / "config.json").exists()


def test_a_run_without_a_model_is_named(capsys):
    assert script.main(["fantasma", "--to", "hf"]) == 2
    assert "«fantasma»" in capsys.readouterr().err


def test_an_unknown_target_is_refused_by_the_library_too(tmp_path: Path):
    with pytest.raises(ConfigError, match="solo admite"):
        bundle.export(toy("smollm"), "onnx", tmp_path / "out", name="x")  # type: ignore[arg-type]
