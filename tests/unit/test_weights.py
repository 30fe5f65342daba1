import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from elchat import bases, files
from elchat import weights as weights_module
from elchat.errors import DiskError, ElchatError, ModelError
from elchat.weights import load_model, save_hf
from tests import toys


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tied llama-shaped folder in fp32."""
    save_hf(toys.loaded("smollm"), tmp_path / "modelo", dtype=torch.float32)
    return tmp_path / "modelo"


def edit_json(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | changes), encoding="utf-8")


def edit_weights(folder: Path, **changes: torch.Tensor | None) -> None:
    state = load_file(folder / "model.safetensors")
    for key, value in changes.items():
        name = key.replace("__", ".")
        if value is None:
            del state[name]
        else:
            state[name] = value
    save_file(state, folder / "model.safetensors")


def test_files_written(folder: Path) -> None:
    assert sorted(p.name for p in folder.iterdir()) == [
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "special_tokens_map.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    assert [p.name for p in folder.parent.iterdir() if p.name.startswith(".")] == []
    assert (folder / "tokenizer.json").read_text("utf-8") == toys.tokenizer_json("smollm")
    generation = json.loads((folder / "generation_config.json").read_text())
    special = toys.tokenizer("smollm").special_ids
    assert generation["eos_token_id"] == [special["<|im_end|>"], special["<|endoftext|>"]]
    names = json.loads((folder / "special_tokens_map.json").read_text())
    assert names["eos_token"] == "<|im_end|>"


def test_loaded_facts(folder: Path) -> None:
    special = toys.tokenizer("smollm").special_ids
    model = load_model(folder)
    assert model.base is None
    assert model.family == "chatml"
    assert model.eos_id == special["<|endoftext|>"]
    assert model.chat_eos_ids[0] == special["<|im_end|>"]
    assert model.doc_prefix_ids == (special["<|endoftext|>"],)
    assert model.licence == "CC0"  # kept by the export
    assert model.origin == str(folder)
    assert not model.model.training
    assert all(p.requires_grad and not p.is_meta for p in model.model.parameters())


def test_llama_ids(tmp_path: Path) -> None:
    save_hf(toys.loaded("llama"), tmp_path / "m", dtype=torch.float32)
    model, special = load_model(tmp_path / "m"), toys.tokenizer("llama").special_ids
    assert model.doc_prefix_ids == (special["<|begin_of_text|>"],)
    assert model.pad_id == special["<|finetune_right_pad_id|>"]
    assert model.eos_id == special["<|end_of_text|>"]
    assert model.chat_eos_ids == tuple(
        special[name] for name in ("<|eot_id|>", "<|end_of_text|>", "<|eom_id|>")
    )


def test_registered_shape_takes_the_registrys_ids(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import dataclasses

    special = toys.tokenizer("smollm").special_ids
    known = dataclasses.replace(
        bases.get("smollm2-135m"), shape=toys.config("smollm"), pad_id=3, licence="Prueba-1.0"
    )
    assert known.eot_id == special["<|im_end|>"]
    monkeypatch.setattr(bases, "BASES", {"smollm2-135m": known})
    model = toys.loaded("smollm")
    assert model.base is known
    assert model.pad_id == 3
    other = dataclasses.replace(known, eot_id=77)  # same shape, other vocabulary
    monkeypatch.setattr(bases, "BASES", {"smollm2-135m": other})
    assert toys.loaded("smollm").base is None


def test_default_system_survives_the_export(tmp_path: Path) -> None:
    model = toys.loaded("smollm")
    model.chat = type(model.chat).for_tokenizer("chatml", model.tokenizer, "Eres elchat.")
    save_hf(model, tmp_path / "m", dtype=torch.float32)
    assert load_model(tmp_path / "m").chat.default_system == "Eres elchat."
    assert load_model(tmp_path / "m", default_system="Otro.").chat.default_system == "Otro."


def test_weights_do_not_depend_on_the_file_afterwards(folder: Path) -> None:
    model = load_model(folder).model
    before = toys.logits(model, toys.ids())
    with open(folder / "model.safetensors", "r+b") as handle:
        handle.truncate(10)
    assert torch.equal(toys.logits(model, toys.ids()), before)


def test_manifest_gives_origin_and_licence(folder: Path) -> None:
    manifest = {"origin": "org/m@abc", "licence": "MIT"}
    (folder / bases.MANIFEST_FILE).write_text(json.dumps(manifest))
    model = load_model(folder)
    assert (model.origin, model.licence) == ("org/m@abc", "MIT")


def test_redundant_tied_head_and_old_rotary_tables(folder: Path) -> None:
    expected = toys.logits(load_model(folder).model, toys.ids())
    embedding = load_file(folder / "model.safetensors")["model.embed_tokens.weight"]
    edit_weights(
        folder,
        lm_head__weight=embedding.clone(),
        model__layers__0__self_attn__rotary_emb__inv_freq=torch.ones(8),
    )
    # the helper's double underscore also splits "rotary_emb" no further: the name is as in HF
    assert "model.layers.0.self_attn.rotary_emb.inv_freq" in load_file(folder / "model.safetensors")
    model = load_model(folder).model
    assert torch.equal(toys.logits(model, toys.ids()), expected)
    edit_weights(folder, lm_head__weight=embedding + 1)
    with pytest.raises(ModelError, match="tie_word_embeddings"):
        load_model(folder)


Q = "model__layers__1__self_attn__q_proj__weight"
Q_NAME = r"model\.layers\.1\.self_attn\.q_proj\.weight"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({Q: None}, rf"faltan tensores: {Q_NAME}\."),
        ({"score__weight": torch.ones(2, 2)}, r"sobran tensores .*: score\.weight"),
        ({"model__layers__3__input_layernorm__weight": torch.ones(64)}, r"layers\.3"),
        ({Q: torch.ones(64, 32)}, rf"{Q_NAME} .* mide \[64, 32\] .* dice \[64, 64\]"),
        ({Q: torch.ones(64, 64, dtype=torch.int8)}, "no es de coma flotante"),
        ({Q: torch.full((64, 64), float("nan"))}, rf"{Q_NAME} .* no son números"),
        ({Q: torch.full((64, 64), float("inf"))}, "no son números"),
    ],
)
def test_wrong_tensors(folder: Path, changes: dict[str, torch.Tensor], message: str) -> None:
    edit_weights(folder, **changes)
    with pytest.raises(ModelError, match=message):
        load_model(folder)


def test_long_lists_of_missing_tensors_are_cut(folder: Path) -> None:
    save_file({"x": torch.ones(1)}, folder / "model.safetensors")
    with pytest.raises(ModelError, match=r"y \d+ más\."):
        load_model(folder)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.999])
def test_truncated_safetensors(folder: Path, share: float) -> None:
    path = folder / "model.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(ModelError, match="dañado o incompleto") as caught:
        load_model(folder)
    assert "\n" not in str(caught.value)


def test_corrupt_safetensors_header(folder: Path) -> None:
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[8:40] = b"\xff" * 32
    path.write_bytes(data)
    with pytest.raises(ModelError, match="dañado o incompleto"):
        load_model(folder)


def test_pickle_is_refused_without_being_opened(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch /tmp/x'\ntR.")
    with pytest.raises(ModelError, match="pickle"):
        load_model(folder)
    (folder / "pytorch_model.bin").unlink()
    with pytest.raises(ModelError, match=r"falta model\.safetensors"):
        load_model(folder)


def test_shard_index(folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    expected = toys.logits(load_model(folder).model, toys.ids())
    (folder / "model.safetensors").unlink()
    half = len(state) // 2
    parts = {"a.safetensors": list(state)[:half], "b.safetensors": list(state)[half:]}
    for file, names in parts.items():
        save_file({name: state[name] for name in names}, folder / file)
    weight_map = {name: file for file, names in parts.items() for name in names}
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    assert torch.equal(toys.logits(load_model(folder).model, toys.ids()), expected)
    (folder / "b.safetensors").unlink()
    with pytest.raises(ModelError, match=r"faltan archivos de pesos: b\.safetensors"):
        load_model(folder)
    index.write_text(json.dumps({"weight_map": {"x": "../../etc/passwd"}}))
    with pytest.raises(ModelError, match="no dice en qué archivos"):
        load_model(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "mistral"}, "«mistral»"),
        ({"use_sliding_window": True}, "ventana deslizante"),
        ({"quantization_config": {"bits": 4}}, "cuantizado para otra herramienta"),
        ({"hidden_size": None}, "hidden_size"),
        ({"num_hidden_layers": 10**9}, "no son posibles"),
        ({"intermediate_size": 10**18}, "no son posibles|mide"),
        ({"num_key_value_heads": "dos"}, "valores de otro tipo"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4}}, "«yarn»"),
        ({"vocab_size": 300}, "mide"),
    ],
)
def test_wrong_config(folder: Path, changes: dict[str, object], message: str) -> None:
    edit_json(folder / "config.json", **changes)
    with pytest.raises(ModelError, match=message):
        load_model(folder)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize("content", ["", "{", "[1]", "\x00\x01"])
def test_damaged_json(folder: Path, name: str, content: str) -> None:
    (folder / name).write_text(content)
    with pytest.raises(ElchatError) as caught:
        load_model(folder)
    assert name in str(caught.value)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
def test_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(ModelError, match=name):
        load_model(folder)


def test_vocabulary_of_another_model(folder: Path) -> None:
    small = toys.loaded("smollm").model.config
    tokenizer = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    extra = dict(tokenizer["added_tokens"][0], id=small.vocab_size, content="<|más|>")
    tokenizer["added_tokens"].append(extra)
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    with pytest.raises(ModelError, match="no son del mismo modelo"):
        load_model(folder)


def test_paths_that_are_not_models(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(ModelError, match="No existe el modelo"):
        load_model(tmp_path / "nada")
    with pytest.raises(ModelError, match="da la carpeta que lo contiene"):
        load_model(folder / "model.safetensors")
    (tmp_path / "vacía").mkdir()
    with pytest.raises(ModelError, match="hace falta una carpeta de Hugging Face"):
        load_model(tmp_path / "vacía")


def test_saving_replaces_the_folder_as_a_whole(folder: Path) -> None:
    (folder / "viejo.txt").write_text("x")
    save_hf(toys.loaded("smollm", seed=9), folder, dtype=torch.float32)
    assert not (folder / "viejo.txt").exists()
    expected = toys.logits(toys.loaded("smollm", seed=9).model, toys.ids())
    assert torch.equal(toys.logits(load_model(folder).model, toys.ids()), expected)


@pytest.mark.parametrize("failing", ["save_file", "_tokenizer_config", "fsync_dir"])
def test_a_failure_while_saving_keeps_what_was_there(
    folder: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    before = {p.name: p.read_bytes() for p in folder.iterdir()}

    def fail(*args: object) -> None:
        raise OSError(28, "No space left on device")

    module = files if failing == "fsync_dir" else weights_module
    monkeypatch.setattr(module, failing, fail)
    with pytest.raises(DiskError, match="El disco se llenó"):
        save_hf(toys.loaded("smollm", seed=9), folder, dtype=torch.float32)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
    assert [p.name for p in folder.parent.iterdir()] == [folder.name]


def test_a_failed_swap_puts_the_old_folder_back(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    replace = os.replace

    def fail_on_the_new_one(source: Path, target: Path) -> None:
        if source.name.endswith(".tmp") and target == folder:
            raise OSError(28, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(files.os, "replace", fail_on_the_new_one)
    with pytest.raises(DiskError):
        save_hf(toys.loaded("smollm", seed=9), folder, dtype=torch.float32)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before


def test_no_room_is_said_before_writing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(folder)
    monkeypatch.setattr(files.shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(DiskError, match="No hay sitio"):
        save_hf(toys.loaded("smollm"), folder.parent / "otro", dtype=torch.float32)
    assert not (folder.parent / "otro").exists()


def test_a_shape_hugging_face_cannot_say_is_refused(tmp_path: Path) -> None:
    model = toys.loaded("smollm", has_qkv_bias=True)  # llama with q, k, v biases but no o bias
    with pytest.raises(ModelError, match="no puede expresar"):
        save_hf(model, tmp_path / "m", dtype=torch.float32)
    assert os.listdir(tmp_path) == []


def test_loading_costs_one_copy(tmp_path: Path) -> None:
    """Peak memory while loading stays well under two copies of the model."""
    import subprocess
    import sys

    model = toys.loaded(
        "smollm", vocab_size=20_000, d_model=1024, n_heads=16, n_kv_heads=16, head_dim=64, d_ff=2048
    )
    save_hf(model, tmp_path / "m", dtype=torch.bfloat16)
    code = (
        "import sys, pathlib, torch\n"
        "from elchat.hardware import peak_resident_bytes as rss\n"
        "from elchat.weights import load_model\n"
        "before = rss()\n"
        "load_model(pathlib.Path(sys.argv[1]), dtype=torch.float32)\n"
        "print(rss() - before)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "m")]
    out = subprocess.run(command, capture_output=True, text=True, check=True)
    one_copy = 4 * model.model.config.n_params
    # fp32 parameters + the mapped bf16 file (page cache that counts while mapped) = 1.5 copies
    assert int(out.stdout) < 1.8 * one_copy
