"""Bits per byte by domain before and after a continued pretraining (see benchmarks/cpt_real.yaml).

    python -m benchmarks.cpt_domains --before MODEL --after MODEL --held-out FILE.jsonl.gz
        --english FOLDER [--max-bytes 20000] [--out FILE.md]

The held-out file has a JSON object a line with `text` and `source`; DOMAINS says which sources make
a domain. Both models read the same documents; the difference is given with its paired 95 %
interval over documents. Prints a Markdown table and, last, one JSON object.
"""

from __future__ import annotations

import argparse
import dataclasses
import gzip
import json
import sys
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from elchat.evaluation import documents, stats
from elchat.weights import load_model

DOMAINS = {
    "manuales técnicos": (
        "python_docs", "gimp", "libreoffice", "manpages", "lilypond", "freedombox", "debian",
        "owasp", "carpentry", "rust_book", "hf_course", "opensource", "aptitude", "ubuntu", "maint",
    ),
    "libros de texto": ("openstax",),
    "novela y cuento": ("eltec", "conha19", "don_quijote"),
    "leyes": ("leyes", "udhr"),
    "enciclopedia y noticias": ("wikipedia", "ud_"),
    "frases y refranes": ("tatoeba", "fortunes"),
    "verso y teatro": ("sonetos", "teatro", "biblia"),
    "recetas": ("recetas",),
}  # fmt: skip


def main() -> int:
    """Measure both models and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--before", type=Path, required=True)
    parser.add_argument("--after", type=Path, required=True)
    parser.add_argument("--held-out", type=Path, required=True)
    parser.add_argument("--english", type=Path, required=True)
    parser.add_argument("--max-bytes", type=int, default=20_000, help="de cada dominio")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    texts = by_domain(arguments.held_out, arguments.max_bytes)
    texts["inglés"] = documents.read_texts("en", arguments.english, max_bytes=arguments.max_bytes)
    before = bits_of(arguments.before, texts)
    after = bits_of(arguments.after, texts)
    rows = {name: compare(before[name], after[name], texts[name]) for name in texts}
    spanish = [name for name in texts if name != "inglés"]
    rows["todo el español"] = compare(
        *([x for name in spanish for x in bits[name]] for bits in (before, after)),
        [text for name in spanish for text in texts[name]],
    )
    table = markdown(rows)
    if arguments.out:
        arguments.out.write_text(table, encoding="utf-8")
    print(table)
    print(json.dumps({"benchmark": "cpt_domains", "domains": rows}, ensure_ascii=False))
    return 0


def by_domain(path: Path, max_bytes: int) -> dict[str, list[str]]:
    """The first documents of each domain, up to `max_bytes` of each."""
    found: dict[str, list[str]] = {name: [] for name in DOMAINS}
    sizes: dict[str, int] = defaultdict(int)
    opened: Callable = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            domain = next(n for n, starts in DOMAINS.items() if row["source"].startswith(starts))
            size = len(row["text"].encode("utf-8"))
            if not found[domain] or sizes[domain] + size <= max_bytes:
                found[domain].append(row["text"])
                sizes[domain] += size
    return {name: texts for name, texts in found.items() if texts}


@torch.no_grad()
def bits_of(path: Path, texts: dict[str, list[str]]) -> dict[str, list[float]]:
    """Bits of every document of every domain, in fp32."""
    loaded = load_model(path, dtype=torch.float32)
    bits = {}
    for name, of_domain in texts.items():
        language = "en" if name == "inglés" else "es"
        held_out = documents.from_texts(loaded, language, of_domain, name)
        found = [0.0] * len(of_domain)
        for at, value in documents.document_bits(loaded.model, held_out.documents):
            found[at] = value
        bits[name] = found
        print(f"{path.name}: {name}", file=sys.stderr, flush=True)
    return bits


def compare(before: Sequence[float], after: Sequence[float], texts: list[str]) -> dict:
    """Bits per byte of both models and the paired interval of their difference."""
    sizes = [len(text.encode("utf-8")) for text in texts]
    found = stats.compare_ratios(before, after, sizes)
    return dataclasses.asdict(found) | {"n_bytes": sum(sizes)}


def markdown(rows: dict[str, dict]) -> str:
    lines = [
        "| dominio | documentos | KB | antes | después | cambio (IC 95 %) |",
        "|---|--:|--:|--:|--:|---|",
    ]
    for name, row in rows.items():
        change = f"{row['b'] - row['a']:+.3f}"
        if row["ci95"]:
            change += " [{:+.3f}; {:+.3f}]".format(*row["ci95"])
        cells = [name, str(row["n"]), f"{row['n_bytes'] / 1000:.1f}"]
        cells += [f"{row['a']:.3f}", f"{row['b']:.3f}", change]
        lines.append(f"| {' | '.join(cells)} |".replace(".", ","))
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
