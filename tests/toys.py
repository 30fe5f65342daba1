"""Small tokenizers and models of every family, built in the test process; nothing is downloaded."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers import Tokenizer as RawTokenizer

from elchat.gpt import GPT
from elchat.model_config import GPTConfig, RopeScaling
from elchat.tokenizer import Tokenizer
from elchat.weights import LoadedModel, build_loaded

SENTENCES = [
    "El niño comió piñas en la montaña y después durmió la siesta bajo el olivo.",
    "¿Quién eres? Soy elchat, un modelo pequeño que habla español; ¡mucho gusto!",
    "En 1998 la ciudad tenía 12.345 habitantes y un tren que salía a las 07:30.",
    "Mañana iremos al mercado: tomates, pan, aceite y un kilo de garbanzos.",
    "La lingüista preguntó: «¿cigüeña o pingüino?», y el público se rió.",
    "user assistant system user assistant system",
]
SMOLLM_SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<repo_name>"]
QWEN_SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
LLAMA_SPECIAL = [
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|finetune_right_pad_id|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eom_id|>",
    "<|eot_id|>",
]
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
FAMILIES = ("smollm", "qwen", "llama")
CHAT_FAMILY = {"smollm": "chatml", "qwen": "chatml", "llama": "llama3"}


@functools.cache
def tokenizer_json(family: str) -> str:
    """A trained byte-level BPE with the family's pre-tokenizer, special tokens and quirks."""
    raw = RawTokenizer(models.BPE())
    raw.decoder = decoders.ByteLevel()
    if family == "smollm":
        raw.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)]
        )
    else:
        numbers = r"\p{N}" if family == "qwen" else r"\p{N}{1,3}"
        raw.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(SPLIT % numbers), "isolated"),
                pre_tokenizers.ByteLevel(False, use_regex=False),
            ]
        )
    if family == "qwen":
        raw.normalizer = normalizers.NFC()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        show_progress=False,
        special_tokens=SMOLLM_SPECIAL if family == "smollm" else [],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    raw.train_from_iterator(SENTENCES * 3, trainer)
    if family == "qwen":
        raw.add_special_tokens(QWEN_SPECIAL)
        raw.add_tokens([AddedToken("<tool_call>", normalized=False)])
    if family == "llama":
        raw.add_special_tokens(LLAMA_SPECIAL)
    return json.dumps(_with_llama_quirks(json.loads(raw.to_str()), family), ensure_ascii=False)


def _with_llama_quirks(spec: dict[str, Any], family: str) -> dict[str, Any]:
    if family != "llama":
        return spec
    spec["model"]["ignore_merges"] = True
    bos = next(t for t in spec["added_tokens"] if t["content"] == "<|begin_of_text|>")
    piece = {"SpecialToken": {"id": bos["content"], "type_id": 0}}
    spec["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [piece, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [piece, {"Sequence": {"id": "A", "type_id": 0}}],
        "special_tokens": {
            bos["content"]: {
                "id": bos["content"],
                "ids": [bos["id"]],
                "tokens": [bos["content"]],
            }
        },
    }
    return spec


@functools.cache
def tokenizer(family: str) -> Tokenizer:
    """The family's toy vocabulary."""
    return Tokenizer.from_json(tokenizer_json(family))


def config(family: str, *, is_tied: bool = True, **changes: Any) -> GPTConfig:
    """A tiny shape: llama (explicit head_dim, llama3 scaling), qwen (biases) or smollm."""
    shape: dict[str, Any] = dict(
        vocab_size=448,
        n_layers=3,
        d_model=64,
        d_ff=96,
        n_heads=4,
        n_kv_heads=2,
        head_dim=16,
        max_positions=128,
        rope_theta=10_000.0,
        norm_eps=1e-5,
        is_tied=is_tied,
    )
    if family == "qwen":
        shape |= dict(has_qkv_bias=True, model_type="qwen2", rope_theta=1e6, norm_eps=1e-6)
    if family == "llama":  # wavelengths on both sides of the 32-token training context
        scaling = RopeScaling(8.0, 1.0, 4.0, 32)
        shape |= dict(head_dim=32, rope_theta=5e5, rope_scaling=scaling)
    return GPTConfig(**(shape | changes))


def loaded(family: str, *, is_tied: bool = True, seed: int = 0, **changes: Any) -> LoadedModel:
    """A tiny random model with its vocabulary; biases and norms are random too."""
    model = GPT(config(family, is_tied=is_tied, **changes))
    randomise(model, seed)
    return build_loaded(model.eval(), tokenizer(family), origin="prueba", licence="CC0")


def randomise(model: torch.nn.Module, seed: int) -> None:
    """Fill every parameter, in name order, so that no tensor can be swapped unnoticed."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            center = 1.0 if name.endswith("norm.weight") else 0.0
            parameter.normal_(center, 0.2, generator=generator)


def ids(seed: int = 0, rows: int = 2, tokens: int = 48) -> torch.Tensor:
    """Random token ids."""
    return torch.randint(0, 420, (rows, tokens), generator=torch.Generator().manual_seed(seed))


def logits(model: Any, ids_BT: torch.Tensor) -> torch.Tensor:
    """Logits of ours or of a transformers model."""
    with torch.no_grad():
        out = model(ids_BT)
    return out if isinstance(out, torch.Tensor) else out.logits


def test_data(*parts: str) -> Path:
    """A real file under ELCHAT_TEST_DATA, or skip the test."""
    import os

    import pytest

    root = os.environ.get("ELCHAT_TEST_DATA")
    path = Path(root or "/nonexistent").joinpath(*parts)
    if not path.exists():
        pytest.skip(f"hace falta ELCHAT_TEST_DATA con {'/'.join(parts)}")
    return path


test_data.__test__ = False  # type: ignore[attr-defined]
