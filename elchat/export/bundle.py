"""One finished model into a folder that others can use: written, read back, compared, described.

    hf/      config.json model.safetensors tokenizer.json ...     transformers, vLLM, TGI
    gguf/    NAME.Q8_0.gguf                                       llama.cpp, LM Studio
    ollama/  the same and a Modelfile                             Ollama

Each with README.md, the licence's files and elchat-export.json. The folder appears whole, after
the comparison, or not at all.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from elchat import __version__
from elchat.errors import ConfigError
from elchat.export import gguf_writer, licences, model_card, ollama
from elchat.export.gguf_writer import GGUFType
from elchat.export.shapes import expressible
from elchat.export.verify import Check, verify
from elchat.files import (
    atomic_dir,
    format_bytes,
    read_json,
    require_free_space,
    sha256_file,
    write_json,
)
from elchat.report.facts import Facts
from elchat.weights import LoadedModel, write_hf_files

Target = Literal["hf", "gguf", "ollama"]
TARGETS: tuple[Target, ...] = ("hf", "gguf", "ollama")
MANIFEST = "elchat-export.json"
MARGIN_BYTES = 64 << 20
BITS = {"f16": 16.0, "q8_0": 8.5, "q4_0": 4.5}
WEIGHT_WORDS = {
    "f16": "F16, coma flotante de 16 bits",
    "q8_0": "Q8_0, 8 bits con una escala cada 32 valores",
    "q4_0": "Q4_0, 4 bits con una escala cada 32 valores (la matriz de palabras, 8 bits)",
}
Progress = Callable[[str], None]


@dataclass(frozen=True)
class Exported:
    """A finished export.

    Attributes:
        path: the folder.
        files: sha256 by file name.
        check: what the comparison saw.
    """

    path: Path
    files: dict[str, str]
    check: Check


def export(
    loaded: LoadedModel,
    target: Target,
    out: Path,
    *,
    name: str,
    kind: GGUFType = "q8_0",
    dtype: torch.dtype = torch.bfloat16,
    facts: Facts | None = None,
    base_folder: Path | None = None,
    progress: Progress = lambda line: None,
) -> Exported:
    """Write a model for others, in the place of what `out` held (see `refuse_existing`).

    Args:
        loaded: the model; its weights are not changed.
        target: "hf", "gguf" or "ollama".
        out: folder to make.
        name: title and stem of the file names.
        kind: of GGUF matrices.
        dtype: of Hugging Face weights.
        facts: of the run that made it, for the card.
        base_folder: where the base's licence may lie.
        progress: told each step.

    Raises:
        ConfigError: `target` is unknown.
        ModelError: what was read back is another model; nothing is left.
        DiskError: no room; nothing is left.
    """
    if target not in TARGETS:
        raise ConfigError(f"--to vale «{target}» y solo admite {', '.join(TARGETS)}.")
    loaded = expressible(loaded)
    base_title = loaded.base.title if loaded.base else None
    duties = licences.obligations(loaded.licence, base_title, base_folder)
    if duties.name_prefix and not name.lower().startswith("llama"):
        name = duties.name_prefix + name
    bits = torch.finfo(dtype).bits if target == "hf" else BITS[kind]
    needed = int(loaded.model.config.n_params * bits / 8) + MARGIN_BYTES
    require_free_space(out, needed, "el modelo exportado")
    weights = str(dtype).removeprefix("torch.") if target == "hf" else WEIGHT_WORDS[kind]
    with atomic_dir(out) as folder:
        if target == "hf":
            progress(f"Escribiendo {weights} en formato Hugging Face…")
            write_hf_files(loaded, folder, dtype=dtype)
            model_file, written, what = "", folder, "El modelo exportado"
            make_state = functools.partial(_rounded, loaded, dtype)
        else:
            model_file = f"{name}.{kind.upper()}.gguf"
            progress(f"Escribiendo {model_file} ({weights})…")
            gguf_writer.write_gguf(loaded, folder / model_file, kind, name=name)
            written, what = folder / model_file, model_file
            make_state = functools.partial(gguf_writer.stored_state, loaded.model, kind)
        progress("Leyéndolo de nuevo y comparando…")
        check = verify(loaded, make_state, written, what)
        if target == "ollama":
            text = ollama.modelfile(loaded, model_file, name, " ".join(duties.points))
            (folder / "Modelfile").write_text(text, encoding="utf-8")
        card = model_card.render(
            loaded, name, target, duties, facts, weights=weights, model_file=model_file
        )
        (folder / "README.md").write_text(card, encoding="utf-8")
        for file_name, content in duties.files.items():
            (folder / file_name).write_text(content, encoding="utf-8")
        _share_modes(folder)
        files = {p.name: sha256_file(p) for p in sorted(folder.iterdir())}
        write_json(folder / MANIFEST, _manifest(target, kind, dtype, name, files, check))
    total = sum(p.stat().st_size for p in out.iterdir())
    progress(f"Listo: {out} ({format_bytes(total)}).")
    return Exported(out, files, check)


def refuse_existing(out: Path, replace: bool) -> None:
    """Never write over what is not an earlier export of ours.

    Raises:
        ConfigError: the place is taken.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not _is_ours(out):
        raise ConfigError(f"{out} ya existe y no es una exportación de elchat: elige otro --out.")
    if not replace:
        raise ConfigError(
            f"{out} ya tiene una exportación.",
            hint="Elige otra carpeta con --out o sustitúyela con --force",
        )


def _share_modes(folder: Path) -> None:
    """Give every file the card's permissions: safetensors writes its own for the owner alone."""
    mode = (folder / "README.md").stat().st_mode
    for path in folder.iterdir():
        path.chmod(mode)


def _rounded(loaded: LoadedModel, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    return {name: tensor.to(dtype).float() for name, tensor in loaded.model.state_dict().items()}


def _is_ours(out: Path) -> bool:
    try:
        return isinstance(read_json(out / MANIFEST), dict)
    except (OSError, ValueError):
        return False


def _manifest(
    target: str, kind: str, dtype: torch.dtype, name: str, files: dict[str, str], check: Check
) -> dict[str, Any]:
    return {
        "schema": 1,
        "target": target,
        "type": str(dtype).removeprefix("torch.") if target == "hf" else kind,
        "name": name,
        "elchat_version": __version__,
        "created": time.time(),
        "files": files,
        "check": asdict(check),
    }
