"""Train a vocabulary of one's own: text in, tokenizer.json and a report out.

    python -m scripts.tok_train --input TEXT... --output DIR [--family llama3] [--vocab-size 32768]
        [--special NAME...] [--max-mb MB] [--compare NAME=TOKENIZER_JSON...]
        [--held-out [NAME=]TEXT...]

Inputs are what a configuration's `path` takes (txt, md, jsonl, parquet, .gz); they are read once,
in batches, so they may be larger than memory: what grows is the list of distinct words. Text files
go line by line. The report (informe.json, informe.md, informe.svg) says how many bytes one token
holds on each held-out text, how many tokens a word takes, and how many words are one token, for
the new vocabulary and for those it is compared with.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import elchat_bpe
from elchat.config import SourceSection
from elchat.data.sources import Document, SourceReader
from elchat.errors import DataError, ElchatError, TokenizerError
from elchat.files import format_bytes, write_json, write_text
from elchat.tokenizer import Tokenizer
from scripts import tok_report
from scripts.arguments import Parser, tell
from scripts.tok_report import as_json, markdown, named_paths

BATCH_BYTES = 1 << 24
CHATML = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


def main(argv: list[str] | None = None) -> int:
    """Train and return the exit code."""
    parser = Parser("tok_train", "Entrena un vocabulario con tus textos.")
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
        return tell(error)
    except elchat_bpe.BpeError as error:
        return tell(TokenizerError(str(error)))
    except KeyboardInterrupt:
        print("\nInterrumpido: no se ha escrito nada.", file=sys.stderr)
        return 130


def work(arguments: argparse.Namespace) -> int:
    """Count, learn, save, report."""
    peers = {
        name: Tokenizer.from_file(Path(path))
        for name, path in named_paths(arguments.compare, "--compare")
    }
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
    table = tok_report.measure({"nuevo": tokenizer} | peers, arguments.held_out)
    facts = {"bytes": n_bytes, "vocab_size": tokenizer.vocab_size, "texts": as_json(table)}
    write_json(arguments.output / "informe.json", facts | seconds)
    write_text(arguments.output / "informe.md", markdown(table))
    if table:
        write_text(arguments.output / "informe.svg", tok_report.svg(table))
    print(markdown(table))
    return 0


def count_words(trainer: elchat_bpe.Trainer, path: str, max_mb: float | None) -> int:
    """Feed one source and return its bytes of text."""
    progress, n_bytes = Progress("lectura"), 0
    batch: list[str] = []
    held = 0
    for text, done, total in texts_of(path, max_mb):
        size = len(text.encode("utf-8", "surrogatepass"))
        batch.append(text)
        held += size
        if held >= BATCH_BYTES:
            trainer.feed(batch)
            n_bytes += held
            progress(done, total)
            batch, held = [], 0
    trainer.feed(batch)
    return n_bytes + held


def texts_of(path: str, max_mb: float | None) -> Iterator[tuple[str, int, int]]:
    """Texts of a source, bytes read and bytes in all.

    A plain text file is one document, perhaps larger than memory, so it goes in blocks of lines:
    a line feed before a character that is not white space ends a piece in every family.
    """
    source = SourceSection(path=path, max_mb=max_mb)
    if max_mb is None and path.endswith((".txt", ".md")) and Path(path).expanduser().is_file():
        yield from blocks(Path(path).expanduser())
        return
    reader = SourceReader(source, kind="cpt")
    for document in reader:
        if isinstance(document, Document):
            yield document.text, reader.bytes_read, reader.total_bytes


def blocks(path: Path) -> Iterator[tuple[str, int, int]]:
    """A text file in blocks of about `BATCH_BYTES`, each cut before a line that begins a piece."""
    total = path.stat().st_size
    lines: list[str] = []
    held = done = 0
    before = ""
    try:
        with open(path, encoding="utf-8-sig", newline="") as handle:
            while line := handle.readline(BATCH_BYTES):
                is_cut = before.endswith("\n") and not (before[-2:-1] or " ").isspace()
                if held >= BATCH_BYTES and is_cut and not line[0].isspace():
                    done += held
                    yield "".join(lines), done, total
                    lines, held = [], 0
                lines.append(line)
                held += len(line.encode("utf-8"))
                before = line
    except UnicodeDecodeError:
        raise DataError(f"{path} no está en UTF-8: conviértelo con iconv.") from None
    if "\0" in "".join(lines)[:4096]:
        raise DataError(f"{path} no es texto: contiene bytes nulos.")
    if total == 0:
        raise DataError(f"{path} está vacío: no hay nada que aprender.")
    yield "".join(lines), total, total


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


if __name__ == "__main__":
    sys.exit(main())
