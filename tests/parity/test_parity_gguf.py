"""GGUF files written with the gguf package, as llama.cpp's converter does, against their source."""

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from gguf.quants import dequantize, quantize
from tokenizers import Tokenizer as RawTokenizer

from elchat.errors import ElchatError, ModelError
from elchat.gguf_reader import llama3_divisors, open_gguf, read_gguf, unpermute
from elchat.gpt import rope_inv_freq
from elchat.weights import LoadedModel, load_model
from tests import toys

PRE = {"smollm": "smollm", "qwen": "qwen2", "llama": "llama-bpe"}
TOP = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
PARTS = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def permute(weights: np.ndarray, n_heads: int) -> np.ndarray:
    """llama.cpp's own formula (convert_hf_to_gguf.py, LlamaModel.permute)."""
    shape = (n_heads, 2, weights.shape[0] // n_heads // 2, *weights.shape[1:])
    return weights.reshape(shape).swapaxes(1, 2).reshape(weights.shape)


def gguf_name(name: str) -> str:
    stem, _, kind = name.rpartition(".")
    if stem in TOP:
        return f"{TOP[stem]}.{kind}"
    _, _, layer, part = stem.split(".", 3)
    return f"blk.{layer}.{PARTS[part]}.{kind}"


def write_gguf(path: Path, source: LoadedModel, family: str, kind: Kind, **meta: Any) -> None:
    """Write `source`; afterwards its own weights are what survived the quantisation."""
    config = source.model.config
    arch = config.model_type
    writer = gguf.GGUFWriter(path, arch)
    writer.add_block_count(config.n_layers)
    writer.add_context_length(config.max_positions)
    writer.add_embedding_length(config.d_model)
    writer.add_feed_forward_length(config.d_ff)
    writer.add_head_count(config.n_heads)
    writer.add_head_count_kv(config.n_kv_heads)
    writer.add_key_length(config.head_dim)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_layer_norm_rms_eps(config.norm_eps)
    for key, value in meta.items():
        writer.add_uint32(f"{arch}.{key.replace('__', '.')}", value)
    write_vocabulary(writer, family)
    if config.rope_scaling is not None:
        ratio = rope_inv_freq(toys.config("llama", rope_scaling=None)) / rope_inv_freq(config)
        writer.add_tensor("rope_freqs.weight", ratio.numpy().astype(np.float32))
    for name, parameter in source.model.state_dict().items():
        values = parameter.numpy()
        used = kind if values.ndim == 2 else Kind.F32
        stored = quantize(values, used)
        parameter.copy_(torch.from_numpy(np.array(dequantize(stored, used))))
        if arch == "llama" and (".q_proj." in name or ".k_proj." in name):
            heads = config.n_heads if ".q_proj." in name else config.n_kv_heads
            stored = permute(stored, heads)
        writer.add_tensor(gguf_name(name), stored, raw_dtype=used)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_vocabulary(writer: gguf.GGUFWriter, family: str) -> None:
    spec = json.loads(toys.tokenizer_json(family))
    tokens = {i: (t, 1) for t, i in spec["model"]["vocab"].items()}
    tokens |= {t["id"]: (t["content"], 3 if t["special"] else 4) for t in spec["added_tokens"]}
    rows = [tokens.get(i, (f"[PAD{i}]", 5)) for i in range(448)]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(PRE[family])
    writer.add_token_list([token for token, _ in rows])
    writer.add_token_types([kind for _, kind in rows])
    writer.add_token_merges([" ".join(pair) for pair in spec["model"]["merges"]])
    if family == "llama":
        names = [token for token, _ in rows]
        writer.add_bos_token_id(names.index("<|begin_of_text|>"))
        writer.add_add_bos_token(True)


@pytest.fixture
def source(request: pytest.FixtureRequest) -> LoadedModel:
    return toys.loaded("smollm")


KINDS = [Kind.F32, Kind.F16, Kind.BF16, Kind.Q8_0, Kind.Q4_1]


@pytest.mark.parametrize("is_tied", [True, False])
@pytest.mark.parametrize("kind", KINDS, ids=lambda k: k.name)
@pytest.mark.parametrize("family", ["smollm", "qwen"])
def test_logits_of_a_gguf(tmp_path: Path, family: str, kind: Kind, is_tied: bool) -> None:
    source = toys.loaded(family, is_tied=is_tied)
    before = toys.logits(source.model, toys.ids())
    write_gguf(tmp_path / "m.gguf", source, family, kind)
    expected = toys.logits(source.model, toys.ids())
    assert torch.equal(before, expected) is (kind == Kind.F32)
    ours = load_model(tmp_path / "m.gguf")
    assert ours.model.config == source.model.config
    assert torch.equal(toys.logits(ours.model, toys.ids()), expected)


def test_the_permutation_matters(tmp_path: Path) -> None:
    """The same weights left in llama.cpp's order give other logits."""
    source = toys.loaded("smollm")
    expected = toys.logits(source.model, toys.ids())
    state = source.model.state_dict()
    for name, value in state.items():
        if ".q_proj." in name:
            value.copy_(torch.from_numpy(permute(value.numpy(), 4).copy()))
    assert (toys.logits(source.model, toys.ids()) - expected).abs().max() > 0.1


def test_unpermute_example_and_inverse() -> None:
    assert unpermute(np.array([0, 2, 1, 3]), 1).tolist() == [0, 1, 2, 3]
    values = np.random.default_rng(0).normal(size=(48, 5))
    assert np.array_equal(unpermute(permute(values, 3), 3), values)


def test_llama3_scaling_is_recovered_from_the_divisors(tmp_path: Path) -> None:
    from elchat.model_config import RopeScaling

    scaling = RopeScaling(32.0, 1.0, 4.0, 8_192)
    source = toys.loaded("llama", rope_scaling=scaling, max_positions=16_384)
    write_gguf(tmp_path / "m.gguf", source, "llama", Kind.F32)
    ours = load_model(tmp_path / "m.gguf")
    assert ours.model.config == source.model.config
    assert torch.equal(toys.logits(ours.model, toys.ids()), toys.logits(source.model, toys.ids()))
    expected = rope_inv_freq(toys.config("llama", rope_scaling=None)) / rope_inv_freq(
        source.model.config
    )
    divisors = llama3_divisors(scaling, 32, 5e5)
    assert np.allclose(divisors, expected.numpy(), rtol=1e-4)
    assert 1.0 in divisors
    assert (divisors > 31).any()
    assert ((divisors > 1.01) & (divisors < 31)).any()


def test_other_rope_divisors_are_refused(tmp_path: Path) -> None:
    source = toys.loaded("llama")  # trained for 32 tokens: not Llama 3's constants
    write_gguf(tmp_path / "m.gguf", source, "llama", Kind.F32)
    with pytest.raises(ModelError, match="no es el de Llama 3"):
        load_model(tmp_path / "m.gguf")


@pytest.mark.parametrize("family", toys.FAMILIES)
def test_rebuilt_vocabulary_gives_the_same_ids(tmp_path: Path, family: str) -> None:
    """To elchat and to the tokenizers library, special tokens included."""
    source = toys.loaded(family, **({"rope_scaling": None} if family == "llama" else {}))
    write_gguf(tmp_path / "m.gguf", source, family, Kind.F32)
    rebuilt = read_gguf(tmp_path / "m.gguf")[2]
    ours = load_model(tmp_path / "m.gguf").tokenizer
    assert ours.special_ids == source.tokenizer.special_ids
    theirs, original = (
        RawTokenizer.from_str(rebuilt),
        RawTokenizer.from_str(toys.tokenizer_json(family)),
    )
    for text in [
        *toys.SENTENCES,
        "1998 zxq <|im_end|> <|eot_id|><tool_call>\n\n  fin 👍",
        "n\u0303",
    ]:
        assert ours.encode(text) == source.tokenizer.encode(text)
        assert theirs.encode(text).ids == original.encode(text).ids
        ids = original.encode(text).ids
        assert theirs.decode(ids, skip_special_tokens=False) == original.decode(
            ids, skip_special_tokens=False
        )


def test_metadata_and_shape_without_tensors(tmp_path: Path, source: LoadedModel) -> None:
    write_gguf(tmp_path / "m.gguf", source, "smollm", Kind.Q8_0)
    file = open_gguf(tmp_path / "m.gguf")
    assert file.metadata["general.architecture"] == "llama"
    assert file.config == source.model.config
    reader = gguf.GGUFReader(tmp_path / "m.gguf")
    assert {t.name: t.data_offset for t in reader.tensors} == {
        name: info.offset for name, info in file.tensors.items()
    }


@pytest.mark.parametrize(
    ("meta", "message"),
    [
        ({"expert_count": 8}, "mezcla de expertos"),
        ({"attention__sliding_window": 32}, "ventana deslizante"),
    ],
)
def test_refused_features(
    tmp_path: Path, source: LoadedModel, meta: dict[str, int], message: str
) -> None:
    write_gguf(tmp_path / "m.gguf", source, "smollm", Kind.F32, **meta)
    with pytest.raises(ModelError, match=message):
        load_model(tmp_path / "m.gguf")


def test_every_truncation_is_a_sentence(tmp_path: Path, source: LoadedModel) -> None:
    whole = tmp_path / "m.gguf"
    write_gguf(whole, source, "smollm", Kind.Q8_0)
    data, cut = whole.read_bytes(), tmp_path / "cut.gguf"
    header = min(info.offset for info in open_gguf(whole).tensors.values())
    for size in [0, 3, 8, 23, 24, 100, *range(200, header, header // 40), header, len(data) - 32]:
        cut.write_bytes(data[:size])
        with pytest.raises(ModelError):
            load_model(cut)


def test_flipped_header_bytes_never_escape_the_error_tree(
    tmp_path: Path, source: LoadedModel
) -> None:
    whole = tmp_path / "m.gguf"
    write_gguf(whole, source, "smollm", Kind.Q8_0)
    data, damaged = bytearray(whole.read_bytes()), tmp_path / "bad.gguf"
    header = min(info.offset for info in open_gguf(whole).tensors.values())
    random, refused = np.random.default_rng(0), 0
    for _ in range(60):
        copy = bytearray(data)
        copy[int(random.integers(0, min(header, 1200)))] = int(random.integers(0, 256))
        damaged.write_bytes(copy)
        try:
            load_model(damaged)
        except ElchatError:
            refused += 1
    assert refused > 20


def test_not_a_gguf_and_unknown_vocabulary(tmp_path: Path, source: LoadedModel) -> None:
    (tmp_path / "a.gguf").write_bytes(b"hola" * 100)
    with pytest.raises(ModelError, match="no es un archivo GGUF"):
        load_model(tmp_path / "a.gguf")
    write_gguf(tmp_path / "b.gguf", source, "smollm", Kind.F32)
    data = (tmp_path / "b.gguf").read_bytes().replace(b"smollm", b"tekken")
    (tmp_path / "b.gguf").write_bytes(data)
    with pytest.raises(ModelError, match="gpt2/tekken"):
        load_model(tmp_path / "b.gguf")
