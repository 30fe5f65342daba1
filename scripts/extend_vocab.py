"""Make a model's vocabulary longer with the words of your texts.

    python -m scripts.extend_vocab MODELO --texto ARCHIVO... --tokens 2000 --salida CARPETA

The result is an ordinary model folder: train it with `model.base: CARPETA` (its new tokens know
nothing yet) and compare bits per byte, which do not depend on the vocabulary.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

from elchat import hub, vocabulary
from elchat.errors import DataError, ElchatError, ModelError
from elchat.report.words import number
from elchat.tokenizer import Tokenizer
from elchat.weights import load_model, save_hf
from scripts.arguments import Parser, tell

HELD_OUT_EVERY = 20  # without --medir, one line in twenty is kept to measure


def main(argv: list[str] | None = None) -> int:
    """Extend, measure and save; returns the exit code."""
    parser = Parser("extend_vocab", "Amplía el vocabulario de un modelo con palabras de un texto.")
    parser.add_argument("model", metavar="MODELO")
    parser.add_argument("--texto", dest="texts", nargs="+", type=Path, required=True)
    parser.add_argument("--medir", dest="measured", nargs="+", type=Path, default=[])
    parser.add_argument("--tokens", type=int, default=2000)
    parser.add_argument("--salida", dest="out", type=Path, required=True)
    parser.add_argument("--start", choices=["base", "instruct"], default="instruct")
    arguments = parser.parse_args(argv)
    try:
        print(extend(arguments))
    except ElchatError as error:
        return tell(error)
    return 0


def extend(arguments: argparse.Namespace) -> str:
    """Do it and say in Spanish what was gained.

    Raises:
        ElchatError: the model, the texts or the folder to write cannot be used.
    """
    if arguments.out.exists():
        raise ModelError(f"{arguments.out} ya existe: elige otra carpeta en --salida.")
    lines = list(read_lines(arguments.texts))
    if arguments.measured:
        training, measured = lines, list(read_lines(arguments.measured))
    else:
        training = [line for i, line in enumerate(lines) if i % HELD_OUT_EVERY]
        measured = lines[::HELD_OUT_EVERY]
    loaded = load_model(hub.fetch_base(arguments.model, arguments.start), dtype=torch.float32)
    found = vocabulary.extend_tokenizer(loaded.tokenizer, training, arguments.tokens)
    save_hf(vocabulary.extend_model(loaded, found), arguments.out, dtype=torch.float32)
    before, after = (bytes_per_token(t, measured) for t in (loaded.tokenizer, found.tokenizer))
    return (
        f"{len(found.parts)} tokens nuevos en {arguments.out}. En texto que no vio: "
        f"{number(before, 3)} → {number(after, 3)} bytes por token "
        f"({number(100 * (1 - before / after), 1)} % menos tokens)."
    )


def read_lines(paths: list[Path]) -> Iterator[str]:
    """Lines of plain text files.

    Raises:
        DataError: one cannot be read.
    """
    for path in paths:
        try:
            with open(path, encoding="utf-8") as handle:
                yield from handle
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "no es texto UTF-8"
            raise DataError(f"No se puede leer {path}: {reason}.") from None


def bytes_per_token(tokenizer: Tokenizer, lines: list[str]) -> float:
    """How much text a token spells on average."""
    tokens = sum(len(ids) for ids in tokenizer.encode_batch(lines))
    return sum(len(line.encode()) for line in lines) / max(tokens, 1)


if __name__ == "__main__":
    sys.exit(main())
