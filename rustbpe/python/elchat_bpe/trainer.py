"""Learn a vocabulary from text and write it as a Hugging Face tokenizer.json."""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np

from elchat_bpe import library, vocabulary
from elchat_bpe.arrays import Texts, groups, take_arrays
from elchat_bpe.errors import BpeError

Family = Literal["gpt2", "smollm2", "qwen2", "llama3"]
SCANNERS = {
    "gpt2": vocabulary.GPT2,
    "smollm2": vocabulary.SMOLLM2,
    "qwen2": vocabulary.QWEN2,
    "llama3": vocabulary.LLAMA3,
}
N_BYTES = 256


class Trainer:
    """Count the words of any amount of text, then learn merges.

    Ties: the commonest pair first; of two as common, the one whose left id is lower, then whose
    right id is lower. Ids 0-255 are the bytes in the order of GPT-2's stand-ins, and each new token
    takes the next id: the numbering of the trainer of `tokenizers`, so that ties fall the same way.
    """

    def __init__(self, family: Family, *, is_nfc: bool | None = None, threads: int = 0) -> None:
        """Start with nothing counted.

        Args:
            family: how text is cut into words.
            is_nfc: put text in NFC first; by default only for qwen2, as Qwen does.
            threads: at most this many; 0, one per core.

        Raises:
            BpeError: an unknown family, or the library is not there.
        """
        if family not in SCANNERS:
            raise BpeError(f"no existe la familia {family!r}: hay {', '.join(SCANNERS)}")
        self.family = family
        self.is_nfc = family == "qwen2" if is_nfc is None else is_nfc
        self._threads = max(threads, 0)
        flags = vocabulary.FLAG_NFC * self.is_nfc
        self._handle = library.make("trainer_new", SCANNERS[family], flags)
        weakref.finalize(self, library.load().elchat_bpe_trainer_free, self._handle)

    def feed(self, texts: Sequence[str]) -> None:
        """Count the words of a batch of texts, in parallel; call it as often as needed.

        Raises:
            BpeError: lone surrogates.
        """
        for parts, _ in groups(texts):
            library.call("trainer_feed", self._handle, *Texts(parts).arguments, self._threads)

    def train(
        self,
        vocab_size: int,
        *,
        special_tokens: Sequence[str] = (),
        min_count: int = 2,
        progress: Callable[[int, int], bool | None] | None = None,
    ) -> dict[str, Any]:
        """Learn and return the tokenizer.json as a dict.

        Args:
            vocab_size: bytes, merges and special tokens together; fewer if the text runs out.
            special_tokens: they take the last ids.
            min_count: pairs that occur less often are not merged.
            progress: called now and then with (tokens learnt, tokens wanted); True stops.

        Raises:
            BpeError: an impossible size.
            StoppedError: `progress` asked for it.
        """
        n_tokens = vocab_size - N_BYTES - len(special_tokens)
        if n_tokens < 0 or len(set(special_tokens)) < len(special_tokens):
            raise BpeError(
                f"el tamaño {vocab_size} no alcanza para los 256 bytes y "
                f"{len(special_tokens)} tokens especiales distintos"
            )
        pairs = self._merges(n_tokens, max(min_count, 1), progress)
        return tokenizer_json(self.family, self.is_nfc, pairs, special_tokens)

    def _merges(
        self, n_tokens: int, min_count: int, progress: Callable[[int, int], bool | None] | None
    ) -> list[list[int]]:
        failure: list[BaseException] = []

        def report(done: int, _count: int, _user: int | None) -> int:
            try:
                return int(bool(progress and progress(done, n_tokens)))
            except BaseException as error:  # it may not cross the library: stop, then raise it
                failure.append(error)
                return 1

        byte_ids = np.empty(N_BYTES, dtype=np.uint32)
        byte_ids[[byte for byte, _ in _alphabet()]] = np.arange(N_BYTES, dtype=np.uint32)
        callback = library.Progress(report)
        try:
            handle = library.make(
                "trainer_train",
                self._handle,
                ctypes.c_void_p(byte_ids.ctypes.data),
                n_tokens,
                min_count,
                callback,
                None,
            )
        except BpeError:
            if failure:
                raise failure[0] from None
            raise
        return take_arrays(handle)[0].reshape(-1, 2).tolist()


def tokenizer_json(
    family: Family, is_nfc: bool, pairs: Sequence[Sequence[int]], special_tokens: Sequence[str]
) -> dict[str, Any]:
    """A tokenizer.json of a family with these merges."""
    tokens = [char for _, char in _alphabet()]
    vocab = {token: token_id for token_id, token in enumerate(tokens)}
    for left, right in pairs:
        token = tokens[left] + tokens[right]
        if token not in vocab:  # two merges may spell the same token
            vocab[token] = len(tokens)
            tokens.append(token)
    added = [
        {
            "id": len(tokens) + k,
            "content": name,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
        for k, name in enumerate(special_tokens)
    ]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": {"type": "NFC"} if is_nfc else None,
        "pre_tokenizer": _pre_tokenizer(family),
        "post_processor": None,
        "decoder": _byte_level(use_regex=True),
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": vocab,
            "merges": [[tokens[left], tokens[right]] for left, right in pairs],
        },
    }


def _alphabet() -> list[tuple[int, str]]:
    """The bytes and their stand-ins, ordered by stand-in."""
    return sorted(enumerate(vocabulary.byte_chars()), key=lambda item: item[1])


def _pre_tokenizer(family: Family) -> dict[str, Any]:
    if family == "gpt2":
        return _byte_level(use_regex=True)
    if family == "smollm2":
        first: dict[str, Any] = {"type": "Digits", "individual_digits": True}
    else:
        pattern = next(p for p, scanner in vocabulary.SPLITS.items() if scanner == SCANNERS[family])
        first = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated"}
        first["invert"] = False
    last = _byte_level(use_regex=family == "smollm2")
    return {"type": "Sequence", "pretokenizers": [first, last]}


def _byte_level(*, use_regex: bool) -> dict[str, Any]:
    return {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": use_regex,
    }
