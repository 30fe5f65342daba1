"""What the tests of rustbpe share: tricky texts, and how others cut them."""

from __future__ import annotations

from pathlib import Path

import pytest
import regex
import tokenizers
from tokenizers import pre_tokenizers

import elchat_bpe
from elchat_bpe import vocabulary

ROOT = Path(__file__).parents[1]
HAS_RUST = elchat_bpe.why_not() is None
needs_rust = pytest.mark.skipif(not HAS_RUST, reason="rustbpe no está compilado")
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
SCANNERS = {"gpt2": 0, "smollm2": 1, "qwen2": 2, "llama3": 3}
TRICKY = [
    "",
    " ",
    "\n",
    "  \r\n\r\n  x\r",
    "a  b   c\t\td \u3000e\u00a0f",
    "I'm I'M we'Ll 'sabc ''ll 'ſ 'ſt x've' '",
    "¿Qué?¡Sí!«a»—b…c ª º 1º 2ª × ÷ 5×3÷2",
    "12345 1a2 ١٢٣ ½ ⅷ x1  2   3\n4",
    "👩‍👩‍👧 é e\u0301 ñ n\u0303 \u0301x \ufeff \u200b",
    "中文 русский язык हिन्दी ไทย 한국어 \u1112\u1161\u11ab",
    "palabralarguísimasinningunacompasión " * 3,
    "aaaaaaaaaaaaaañ aaaaaaaaaaaaaaañ aaaaaaaaaaaaaaaañ",
    "\u0378\U000e0080\U0010ffff\ue000 \x00\x01\x7f\x85\u2028",
    "<|im_end|><|eot_id|> <tool_call>",
]


def reference_pieces(name: str, text: str) -> list[str]:
    """The same expressions on the `regex` engine."""
    if name in ("gpt2", "smollm2"):
        parts = regex.split(r"(\p{N})", text) if name == "smollm2" else [text]
        return [m.group() for part in parts for m in regex.finditer(GPT2, part)]
    numbers = r"\p{N}" if name == "qwen2" else r"\p{N}{1,3}"
    # ſ folds to s in Oniguruma, and not in the default mode of `regex`
    pattern = (vocabulary.SPLIT % numbers).replace("'s|", "'s|'ſ|")
    return [m.group() for m in regex.finditer(pattern, text)]


def hf_pre_tokenizer(name: str) -> pre_tokenizers.PreTokenizer:
    if name == "gpt2":
        return pre_tokenizers.Split(tokenizers.Regex(GPT2), "isolated")
    if name == "smollm2":
        split = pre_tokenizers.Split(tokenizers.Regex(GPT2), "isolated")
        return pre_tokenizers.Sequence([pre_tokenizers.Digits(True), split])
    numbers = r"\p{N}" if name == "qwen2" else r"\p{N}{1,3}"
    pattern = tokenizers.Regex(vocabulary.SPLIT % numbers)
    return pre_tokenizers.Split(pattern, "isolated")
