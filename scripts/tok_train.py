"""Train a vocabulary of one's own: text in, tokenizer.json and a report out.

    python -m scripts.tok_train --input TEXT... --output DIR [--family llama3] [--vocab-size 32768]
        [--special NAME...] [--max-mb MB] [--compare NAME=TOKENIZER_JSON...] [--held-out TEXT...]

Inputs are what a configuration's `path` takes (txt, md, jsonl, parquet, .gz); they are read once,
in batches, so they may be larger than memory. The report says how many bytes one token holds on
each held-out text, for the new vocabulary and for those it is compared with.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import elchat_bpe
from elchat.config import SourceSection
from elchat.data.sources import Document, SourceReader, iter_documents
from elchat.errors import ElchatError, TokenizerError
from elchat.files import format_bytes, write_json, write_text
from elchat.tokenizer import Tokenizer

BATCH_BYTES = 1 << 24
HELD_OUT_MB = 4.0
CHATML = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


def main(argv: list[str] | None = None) -> int:
    """Train and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m scripts.tok_train", description=__doc__)
    parser.add_argument("--input", nargs="+", required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--family", default="llama3")
    parser.add_argument("--vocab-size", type=int, default=32_768)
    parser.add_argument("--special", nargs="*", default=list(CHATML))
    parser.add_argument("--min-count", type=int, default=2)
    parser.add_argument("--max-mb", type=float)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--compare", nargs="*", default=[], metavar="NAME=PATH")
    parser.add_argument("--held-out", nargs="*", default=[])
    arguments = parser.parse_args(argv)
    try:
        return work(arguments)
    except ElchatError as error:
        print(f"Error: {error}", file=sys.stderr)
        return error.exit_code
    except elchat_bpe.BpeError as error:
        print(f"Error: {error}", file=sys.stderr)
        return TokenizerError.exit_code
    except KeyboardInterrupt:
        print("\nInterrumpido: no se ha escrito nada.", file=sys.stderr)
        return 130


def work(arguments: argparse.Namespace) -> int:
    """Count, learn, save, report."""
    peers = {name: Tokenizer.from_file(Path(path)) for name, path in pairs(arguments.compare)}
    trainer = elchat_bpe.Trainer(arguments.family, threads=arguments.threads)
    start = time.perf_counter()
    n_bytes = 0
    for path in arguments.input:
        n_bytes += count_words(trainer, path, arguments.max_mb)
    counted = time.perf_counter()
    spec = trainer.train(
        arguments.vocab_size,
        special_tokens=arguments.special,
        min_count=arguments.min_count,
        progress=Progress("uniones"),
    )
    seconds = {"count_s": counted - start, "merge_s": time.perf_counter() - counted}
    path = arguments.output / "tokenizer.json"
    write_json(path, spec)
    tokenizer = Tokenizer.from_file(path)
    print(f"\n{path}: {tokenizer.vocab_size} tokens de {format_bytes(n_bytes)} de texto")
    table = fertility({"nuevo": tokenizer} | peers, arguments.held_out)
    write_json(
        arguments.output / "informe.json",
        {"bytes": n_bytes, "vocab_size": tokenizer.vocab_size, "bytes_per_token": table} | seconds,
    )
    write_text(arguments.output / "informe.md", markdown(table))
    print(markdown(table))
    return 0


def pairs(items: Sequence[str]) -> Iterator[tuple[str, str]]:
    """NAME=PATH arguments."""
    for item in items:
        name, equals, path = item.partition("=")
        if not equals:
            raise TokenizerError(f"--compare espera NOMBRE=RUTA y se le dio «{item}».")
        yield name, path


def count_words(trainer: elchat_bpe.Trainer, path: str, max_mb: float | None) -> int:
    """Feed one source and return its bytes of text."""
    reader = SourceReader(SourceSection(path=path, max_mb=max_mb), kind="cpt")
    progress, n_bytes, batch, held = Progress("lectura"), 0, [], 0
    for document in itertools.chain(reader, [None]):
        if isinstance(document, Document):
            batch.append(document.text)
            held += len(document.text)
        if held >= BATCH_BYTES or document is None:
            trainer.feed(batch)
            n_bytes += sum(len(text.encode("utf-8")) for text in batch)
            progress(reader.bytes_read, reader.total_bytes)
            batch, held = [], 0
    return n_bytes


class Progress:
    """One line on stderr with a percentage and an ETA, at most twice a second."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._start = self._shown = time.perf_counter()

    def __call__(self, done: int, total: int) -> None:
        """Show how far it is."""
        now = time.perf_counter()
        if now - self._shown < 0.5 or not done:
            return
        self._shown = now
        left_s = (now - self._start) * (total - done) / done
        print(f"\r{self._what}: {100 * done / total:3.0f} %, faltan {left_s:.0f} s   ",
              end="", file=sys.stderr, flush=True)  # fmt: skip


def fertility(
    tokenizers: dict[str, Tokenizer], paths: Sequence[str]
) -> dict[str, dict[str, float]]:
    """Bytes per token of each tokenizer on each held-out source."""
    table: dict[str, dict[str, float]] = {}
    for path in paths:
        source = SourceSection(path=path, max_mb=HELD_OUT_MB)
        texts = [document.text for document in iter_documents(source, kind="cpt")]
        n_bytes = sum(len(text.encode("utf-8")) for text in texts)
        table[Path(path).name] = {
            name: round(n_bytes / max(len(tokenizer.encode_arrays(texts)[0]), 1), 3)
            for name, tokenizer in tokenizers.items()
        }
    return table


def markdown(table: dict[str, dict[str, Any]]) -> str:
    """Bytes per token, a row for each text."""
    if not table:
        return "Sin textos apartados (--held-out) no hay nada que comparar.\n"
    names = list(next(iter(table.values())))
    lines = ["| bytes por token | " + " | ".join(names) + " |", "|---|" + "--:|" * len(names)]
    lines += [
        f"| {text} | " + " | ".join(f"{row[name]:.2f}" for name in names) + " |"
        for text, row in table.items()
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
