"""autonomy.safetensors and autonomy.json, beside the weights they belong to.

autonomy.json: {"format", "weights" (fingerprint of the model's files), "model_id", "skippable",
"mood" (its shape, or null), "threshold", "settings", "heads", "notes" (ablation, calibration,
training: for the card)}. Without the files a model still has every knob but mood and heads.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from elchat.autonomy.conversation import Autonomy
from elchat.autonomy.mood import Mood, MoodShape
from elchat.autonomy.settings import Settings
from elchat.autonomy.silence import Head
from elchat.errors import ModelError
from elchat.files import atomic_path, read_json, sha256_file, write_json
from elchat.model_config import GPTConfig

FORMAT = "elchat-autonomy/2"
WEIGHTS_FILE, FACTS_FILE = "autonomy.safetensors", "autonomy.json"
SAMPLE_BYTES, SAMPLES = 4096, 256


def fingerprint(model_path: Path) -> str:
    """Identity of a model's weights: size and 256 spread blocks of each file.

    Cheap enough for every start; two trainings differ everywhere, so blocks are enough to tell
    them apart (it is no proof against tampering: the run's manifest has full hashes).
    """
    files = sorted(model_path.glob("model*.safetensors")) if model_path.is_dir() else [model_path]
    files = files or sorted(model_path.glob("*.gguf"))
    if not files:
        raise ModelError(f"En {model_path} no hay pesos de los que sacar la huella.")
    digest = hashlib.sha256()
    for path in files:
        size = path.stat().st_size
        digest.update(size.to_bytes(8, "little"))
        with open(path, "rb") as handle:
            for i in range(SAMPLES):
                handle.seek(max(0, size - SAMPLE_BYTES) * i // (SAMPLES - 1))
                digest.update(handle.read(SAMPLE_BYTES))
    return digest.hexdigest()


def save(
    autonomy: Autonomy,
    folder: Path,
    *,
    model_path: Path | None = None,
    notes: Mapping[str, Any] | None = None,
) -> Autonomy:
    """Write both files; returns the autonomy with the identity it now has.

    Args:
        folder: where; usually the model's own.
        model_path: the weights it belongs to; `folder` where None.
        notes: added to those already there (by key).
    """
    tensors = _tensors(autonomy)
    folder.mkdir(parents=True, exist_ok=True)
    if tensors:
        with atomic_path(folder / WEIGHTS_FILE) as temporary:
            save_file(tensors, temporary, {"format": "pt"})
    weights = fingerprint(model_path or folder)
    autonomy.model_id = _model_id(weights, folder)
    heads = {name: getattr(autonomy, name) is not None for name in ("epistemic", "volition")}
    write_json(
        folder / FACTS_FILE,
        {
            "format": FORMAT,
            "weights": weights,
            "model_id": autonomy.model_id,
            "skippable": list(autonomy.skippable),
            "mood": None if autonomy.mood is None else vars(autonomy.mood.shape),
            "heads": heads,
            "threshold": autonomy.threshold,
            "settings": autonomy.settings.to_json(),
            "notes": {**read_notes(folder), **(notes or {})},
        },
    )
    return autonomy


def load(
    model_path: Path,
    config: GPTConfig,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    folder: Path | None = None,
) -> Autonomy:
    """The autonomy of a model; without its files, one with no mood, no heads and nothing to skip.

    Args:
        model_path: folder or GGUF file of the weights.
        folder: where the two files are, if not beside the weights.

    Raises:
        ModelError: they are damaged or belong to other weights.
    """
    weights = fingerprint(model_path)
    where = folder or (model_path if model_path.is_dir() else model_path.parent)
    if not (where / FACTS_FILE).exists():
        return Autonomy(config, weights, dtype=dtype, device=device)
    facts = _read_facts(where / FACTS_FILE)
    if facts["weights"] != weights:
        raise ModelError(
            f"{where / FACTS_FILE} es de otros pesos que los de {model_path}: quítalo, o repite "
            "elchat autonomy train con este modelo."
        )
    try:
        return _assemble(facts, _read_tensors(where, facts), config, dtype, device, where)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ModelError(f"{where / FACTS_FILE} está dañado ({error}).") from None


def read_notes(folder: Path) -> dict[str, Any]:
    """What was measured and written down so far; {} without a readable file."""
    try:
        notes = read_json(folder / FACTS_FILE).get("notes", {})
    except (OSError, ValueError, AttributeError):
        return {}
    return notes if isinstance(notes, dict) else {}


def _assemble(
    facts: dict[str, Any],
    tensors: dict[str, Tensor],
    config: GPTConfig,
    dtype: torch.dtype,
    device: torch.device | str,
    where: Path,
) -> Autonomy:
    mood = None
    if facts["mood"] is not None:
        shape = MoodShape(**facts["mood"])
        if (shape.width, shape.n_layers) != (config.d_model, config.n_layers):
            raise ModelError(f"El ánimo de {where} es de un modelo de otra forma.")
        mood = Mood(shape)
        mood.load_state_dict(_under(tensors, "mood."))
        mood.eval().requires_grad_(False)
    heads: dict[str, Head | None] = {}
    for name in ("epistemic", "volition"):
        heads[name] = None
        if facts["heads"][name]:
            state = _under(tensors, name + ".")
            head = Head(state["linear.weight"].shape[1])
            head.load_state_dict(state)
            heads[name] = head.eval().requires_grad_(False)
    return Autonomy(
        config,
        _model_id(facts["weights"], where),
        skippable=tuple(facts["skippable"]),
        mood=mood,
        epistemic=heads["epistemic"],
        volition=heads["volition"],
        threshold=float(facts["threshold"]),
        settings=Settings.from_json(facts["settings"]),
        dtype=dtype,
        device=device,
    )


def _tensors(autonomy: Autonomy) -> dict[str, Tensor]:
    parts = {"mood": autonomy.mood, "epistemic": autonomy.epistemic, "volition": autonomy.volition}
    return {
        f"{name}.{key}": value.detach().cpu().contiguous()
        for name, part in parts.items()
        if part is not None
        for key, value in part.state_dict().items()
    }


def _model_id(weights: str, folder: Path) -> str:
    path = folder / WEIGHTS_FILE
    own = sha256_file(path) if path.exists() else ""
    return hashlib.sha256(f"{weights}:{own}".encode()).hexdigest()[:32]


def _read_facts(path: Path) -> dict[str, Any]:
    try:
        facts = read_json(path)
    except (OSError, json.JSONDecodeError, UnicodeDecodeError):
        raise ModelError(f"{path} está dañado: no es JSON válido.") from None
    if not isinstance(facts, dict) or facts.get("format") != FORMAT:
        raise ModelError(f"{path} no es de esta versión de la autonomía ({FORMAT}).")
    return facts


def _read_tensors(folder: Path, facts: dict[str, Any]) -> dict[str, Tensor]:
    if facts["mood"] is None and not any(facts["heads"].values()):
        return {}
    try:
        tensors = load_file(folder / WEIGHTS_FILE)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{folder / WEIGHTS_FILE} falta o está dañado ({error}).") from None
    for name, value in tensors.items():
        if not torch.isfinite(value).all():
            raise ModelError(f"{name} de {folder / WEIGHTS_FILE} tiene valores que no son números.")
    return tensors


def _under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
