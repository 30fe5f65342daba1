"""A `GPT` written as GGUF, the container of llama.cpp and Ollama. The inverse of `gguf_reader`.

The layout is llama.cpp's: its names, q and k rows interleaved for architecture `llama`, Llama 3's
rope scaling as a table of divisors, biases and norms in F32. Tensors are quantised and written
one at a time, so the file never lies whole in memory.

Source: ggml `docs/gguf.md`; llama.cpp `convert_hf_to_gguf.py`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from gguf import GGMLQuantizationType as Kind
from gguf import GGUFWriter, LlamaFileType, quant_shape_to_byte_shape
from gguf.quants import dequantize, quantize

from elchat.errors import ModelError
from elchat.gguf_reader import (
    BLOCK_NAMES,
    CONTROL,
    NORMAL,
    TOP_NAMES,
    UNUSED,
    USER_DEFINED,
    llama3_divisors,
)
from elchat.gpt import GPT
from elchat.model_config import RopeScaling
from elchat.tokenizer import Tokenizer
from elchat.weights import GGUF_SYSTEM_KEY, LoadedModel
from elchat_bpe.errors import BpeError
from elchat_bpe.vocabulary import LLAMA3, QWEN2, SMOLLM2, has_nfc, scanner_of

GGUFType = Literal["f16", "q8_0", "q4_0"]
KINDS: dict[GGUFType, Kind] = {"f16": Kind.F16, "q8_0": Kind.Q8_0, "q4_0": Kind.Q4_0}
FILE_TYPES = {
    "f16": LlamaFileType.MOSTLY_F16,
    "q8_0": LlamaFileType.MOSTLY_Q8_0,
    "q4_0": LlamaFileType.MOSTLY_Q4_0,
}
BLOCK = 32  # values that share a scale in Q8_0 and Q4_0
QUANTIZATION_VERSION = 2
# What llama.cpp calls each way of cutting text into words; with NFC, and whole words first.
PRE_NAMES = {SMOLLM2: "smollm", QWEN2: "qwen2", LLAMA3: "llama-bpe"}

_TOP = {ours: theirs for theirs, ours in TOP_NAMES.items()}
_BLOCK = {ours: theirs for theirs, ours in BLOCK_NAMES.items()}


def write_gguf(loaded: LoadedModel, path: Path, kind: GGUFType, *, name: str) -> None:
    """Write a model, its vocabulary and its chat template.

    Args:
        loaded: what to write; its config must be one llama.cpp can express
            (`shapes.expressible`).
        path: new file; on error a part of it may be left.
        kind: of the matrices; see `stored_kind`.
        name: `general.name`.

    Raises:
        ModelError: a vocabulary or a rope scaling that llama.cpp has no name for.
    """
    vocabulary = vocabulary_metadata(loaded)
    writer = GGUFWriter(path, loaded.model.config.model_type)
    try:
        _add_shape(writer, loaded, kind, name)
        _add_vocabulary(writer, vocabulary)
        tensors = dict(loaded.model.state_dict())
        table = _divisors(loaded.model)
        if table is not None:
            writer.add_tensor_info("rope_freqs.weight", table.shape, table.dtype, table.nbytes)
        for key, tensor in tensors.items():
            used = stored_kind(key, tuple(tensor.shape), kind)
            shape = quant_shape_to_byte_shape(tuple(tensor.shape), used)
            dtype = np.dtype({Kind.F32: np.float32, Kind.F16: np.float16}.get(used, np.uint8))
            is_plain = used in (Kind.F32, Kind.F16)
            shape = tuple(tensor.shape) if is_plain else shape
            n_bytes = int(np.prod(shape)) * dtype.itemsize
            raw = None if is_plain else used
            writer.add_tensor_info(gguf_name(key), shape, dtype, n_bytes, raw_dtype=raw)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        if table is not None:
            writer.write_tensor_data(table)
        for key, tensor in tensors.items():
            used = stored_kind(key, tuple(tensor.shape), kind)
            writer.write_tensor_data(quantize(_llama_cpp_rows(loaded.model, key, tensor), used))
    finally:
        writer.close()


def stored_kind(name: str, shape: tuple[int, ...], kind: GGUFType) -> Kind:
    """How a tensor is stored: vectors in F32, the rest in `kind`, with two exceptions.

    The embedding and the head keep 8 bits in a 4-bit file (they decide every token, and a tied one
    does both jobs); a row that does not divide into blocks of 32 stays in F16.
    """
    if len(shape) == 1:
        return Kind.F32
    if shape[-1] % BLOCK:
        return Kind.F16
    if kind == "q4_0" and name in ("model.embed_tokens.weight", "lm_head.weight"):
        return Kind.Q8_0
    return KINDS[kind]


def stored_state(model: GPT, kind: GGUFType) -> dict[str, torch.Tensor]:
    """The fp32 weights that a file of this kind holds, computed without the file."""
    state = {}
    for name, tensor in model.state_dict().items():
        used = stored_kind(name, tuple(tensor.shape), kind)
        values = tensor.detach().float().cpu().numpy()
        state[name] = torch.from_numpy(np.array(dequantize(quantize(values, used), used)))
    return state


def permute(values: np.ndarray, n_heads: int) -> np.ndarray:
    """Put the rows of q or k in llama.cpp's order: for one head of 4, [0, 1, 2, 3] -> [0, 2, 1, 3].

    Works on weights [H·D, C] and biases [H·D]. The inverse of `gguf_reader.unpermute`.
    """
    halves = values.reshape(n_heads, 2, values.shape[0] // n_heads // 2, *values.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(values.shape)


def gguf_name(name: str) -> str:
    """llama.cpp's name of a tensor: model.layers.0.mlp.up_proj.weight -> blk.0.ffn_up.weight."""
    if name in _TOP:
        return _TOP[name]
    _, _, layer, rest = name.split(".", 3)
    part, _, suffix = rest.rpartition(".")
    return f"blk.{layer}.{_BLOCK[part]}.{suffix}"


def vocabulary_metadata(loaded: LoadedModel) -> dict[str, Any]:
    """The `tokenizer.ggml.*` values; rows of the model without a token are marked unused.

    Raises:
        ModelError: llama.cpp has no rule that cuts text as this vocabulary does.
    """
    spec = json.loads(loaded.tokenizer.to_json())
    rows = loaded.model.config.vocab_size
    tokens = [f"[PAD{i}]" for i in range(rows)]
    types = [UNUSED] * rows
    for token, i in spec["model"]["vocab"].items():
        tokens[i], types[i] = token, NORMAL
    for item in spec.get("added_tokens") or []:
        tokens[item["id"]] = item["content"]
        types[item["id"]] = CONTROL if item.get("special") else USER_DEFINED
    merges = [m if isinstance(m, str) else " ".join(m) for m in spec["model"]["merges"]]
    return {
        "pre": pre_name(loaded.tokenizer, spec),
        "tokens": tokens,
        "token_type": types,
        "merges": merges,
        "bos": loaded.bos_id,
        "eos": loaded.chat_eos_ids[0],
        "pad": loaded.pad_id,
        "add_bos": loaded.family == "llama3",
        "template": loaded.chat.jinja_template(),
        "system": loaded.chat.default_system,
    }


def pre_name(tokenizer: Tokenizer, spec: dict[str, Any]) -> str:
    """`tokenizer.ggml.pre`: which of llama.cpp's word splitters does the same as this vocabulary's.

    Raises:
        ModelError: none does.
    """
    unknown = ModelError(
        "llama.cpp no sabe cortar el texto como lo hace el vocabulario de este modelo: solo se "
        "exportan a GGUF los de SmolLM2, Qwen2.5 y Llama 3; usa --to hf."
    )
    try:
        name = PRE_NAMES.get(scanner_of(spec.get("pre_tokenizer")))
        is_nfc = has_nfc(spec.get("normalizer"))
    except BpeError:
        raise unknown from None
    ignores_merges = bool(spec["model"].get("ignore_merges"))
    if name is None or is_nfc != (name == "qwen2") or ignores_merges != (name == "llama-bpe"):
        raise unknown
    return name


def _add_shape(writer: GGUFWriter, loaded: LoadedModel, kind: GGUFType, name: str) -> None:
    config = loaded.model.config
    writer.add_name(name)
    writer.add_license(loaded.licence)
    writer.add_languages(["es", "en"])
    writer.add_file_type(FILE_TYPES[kind])
    writer.add_quantization_version(QUANTIZATION_VERSION)
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_positions)
    writer.add_embedding_length(config.d_model)
    writer.add_block_count(config.n_layers)
    writer.add_feed_forward_length(config.d_ff)
    writer.add_head_count(config.n_heads)
    writer.add_head_count_kv(config.n_kv_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_layer_norm_rms_eps(config.norm_eps)


def _add_vocabulary(writer: GGUFWriter, vocabulary: dict[str, Any]) -> None:
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(vocabulary["pre"])
    writer.add_token_list(vocabulary["tokens"])
    writer.add_token_types(vocabulary["token_type"])
    writer.add_token_merges(vocabulary["merges"])
    if vocabulary["bos"] is not None:
        writer.add_bos_token_id(vocabulary["bos"])
    writer.add_eos_token_id(vocabulary["eos"])
    writer.add_eot_token_id(vocabulary["eos"])
    writer.add_pad_token_id(vocabulary["pad"])
    writer.add_add_bos_token(vocabulary["add_bos"])
    writer.add_chat_template(vocabulary["template"])
    if vocabulary["system"] is not None:
        writer.add_string(GGUF_SYSTEM_KEY, vocabulary["system"])


def _divisors(model: GPT) -> np.ndarray | None:
    """Llama 3's table; GGUF keeps no other trace of the scaling, so only its constants fit."""
    scaling = model.config.rope_scaling
    if scaling is None:
        return None
    if scaling != RopeScaling(scaling.factor, 1.0, 4.0, 8_192):
        raise ModelError(
            "El escalado de posiciones de este modelo no es el publicado de Llama 3 (1, 4, 8192) "
            "y un GGUF no puede decirlo: usa --to hf."
        )
    return llama3_divisors(scaling, model.config.head_dim, model.config.rope_theta)


def _llama_cpp_rows(model: GPT, name: str, tensor: torch.Tensor) -> np.ndarray:
    values = tensor.detach().float().cpu().numpy()
    if model.config.model_type != "llama":
        return values
    if ".q_proj." in name:
        return permute(values, model.config.n_heads)
    return permute(values, model.config.n_kv_heads) if ".k_proj." in name else values
