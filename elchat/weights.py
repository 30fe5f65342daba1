"""Model folders and files to a `GPT` and back.

Reads a Hugging Face folder (safetensors, one file or sharded) or a GGUF; writes a Hugging Face
folder that `transformers` loads with identical logits. Parameters are created on the meta device
and replaced one by one, so nothing is initialised at random and nothing is held twice. Pickle
(`pytorch_model.bin`) is refused: loading one can run anything.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from elchat import bases
from elchat.bases import Base, Family
from elchat.chat_format import ChatFormat, detect_family
from elchat.errors import ModelError
from elchat.files import atomic_dir, require_free_space
from elchat.gguf_reader import open_gguf, read_gguf
from elchat.gpt import GPT
from elchat.model_config import GPTConfig, config_from_hf, config_to_hf
from elchat.tokenizer import Tokenizer

__all__ = ["LoadedModel", "build_loaded", "load_model", "read_gguf", "save_hf"]

WEIGHTS_FILE, INDEX_FILE = "model.safetensors", "model.safetensors.index.json"
UNKNOWN_LICENCE = "desconocida"
GGUF_SYSTEM_KEY = "elchat.default_system"
SAVE_MARGIN_BYTES = 32 << 20  # vocabulary and JSON files
MAX_NAMES_SHOWN = 5
MAX_LAYERS = 512
Build = Callable[[GPTConfig, Iterable[tuple[str, Tensor]], str], GPT]


@dataclass
class LoadedModel:
    """A model with everything needed to train it, talk to it and write it again.

    Attributes:
        base: the registry's entry with this shape, if any.
        eos_id: ends a document; chat_eos_ids[0] ends a turn.
        doc_prefix_ids: written before every document.
        licence: of the weights.
        origin: hub id and revision, package, or path.
        chat: conversation format, with the default system message.
    """

    model: GPT
    tokenizer: Tokenizer
    base: Base | None
    family: Family
    bos_id: int | None
    eos_id: int
    chat_eos_ids: tuple[int, ...]
    pad_id: int
    doc_prefix_ids: tuple[int, ...]
    licence: str
    origin: str
    chat: ChatFormat


def load_model(
    path: Path,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    default_system: str | None = None,
) -> LoadedModel:
    """Load a Hugging Face folder or a .gguf file.

    Args:
        path: folder with config.json, tokenizer.json and safetensors, or a GGUF file.
        dtype: of the parameters in memory.
        device: where they live.
        default_system: system message for conversations that bring none; None keeps the one the
            model was exported with.

    Raises:
        ModelError: something is missing, damaged or not supported; the sentence names it.
        TokenizerError: the vocabulary cannot be used.
    """
    return _load(path, functools.partial(_materialise, dtype=dtype, device=device), default_system)


def load_skeleton(path: Path, *, default_system: str | None = None) -> LoadedModel:
    """Everything of a model but its weights, which stay on the meta device: fast at any size.

    Raises:
        ModelError: see `load_model`.
    """
    return _load(path, lambda config, _, where: _empty_model(config, where), default_system)


def _load(path: Path, build: Build, default_system: str | None) -> LoadedModel:
    if path.is_dir():
        ggufs = sorted(path.glob("*.gguf"))
        if (path / "config.json").exists() or len(ggufs) != 1:
            return _load_hf(path, build, default_system)
        path = ggufs[0]
    if not path.exists():
        raise ModelError(f"No existe el modelo {path}.", hint="Mira los que hay: elchat models")
    if path.suffix != ".gguf":
        raise ModelError(
            f"{path} no es una carpeta de Hugging Face ni un archivo .gguf: si es un .safetensors, "
            "da la carpeta que lo contiene."
        )
    return _load_gguf(path, build, default_system)


def save_hf(loaded: LoadedModel, path: Path, *, dtype: torch.dtype = torch.bfloat16) -> None:
    """Write a Hugging Face folder atomically; an existing one is replaced as a whole.

    Raises:
        DiskError: it does not fit; what was there stays.
    """
    n_bytes = loaded.model.config.n_params * dtype.itemsize
    require_free_space(path, n_bytes + SAVE_MARGIN_BYTES, "el modelo")
    with atomic_dir(path) as folder:
        write_hf_files(loaded, folder, dtype=dtype)


def write_hf_files(loaded: LoadedModel, folder: Path, *, dtype: torch.dtype) -> None:
    """Write the files of a Hugging Face model into a folder.

    Files: config.json, model.safetensors, tokenizer.json (original bytes), tokenizer_config.json
    (with the chat template), generation_config.json, special_tokens_map.json.

    Raises:
        ModelError: its architecture, as Hugging Face knows it, has not these biases.
    """
    config = loaded.model.config
    hf_config = config_to_hf(
        config,
        bos_id=loaded.bos_id,
        eos_ids=list(loaded.chat_eos_ids[:1]),
        pad_id=loaded.pad_id,
        dtype=str(dtype).removeprefix("torch."),
    )
    if config_from_hf(hf_config) != config:
        raise ModelError(
            f"El formato de Hugging Face no puede expresar este modelo ({config}): quita los "
            "sesgos que su arquitectura no tiene."
        )
    save_file(_export_state(loaded.model, dtype), folder / WEIGHTS_FILE, {"format": "pt"})
    loaded.tokenizer.save(folder / "tokenizer.json")
    _write_json(folder / "config.json", hf_config)
    _write_json(folder / "generation_config.json", _generation_config(loaded))
    _write_json(folder / "tokenizer_config.json", _tokenizer_config(loaded))
    _write_json(folder / "special_tokens_map.json", _special_tokens(loaded))


def build_loaded(
    model: GPT,
    tokenizer: Tokenizer,
    *,
    origin: str,
    licence: str | None = None,
    default_system: str | None = None,
    chat_template: str | None = None,
) -> LoadedModel:
    """Find the ids and the format that go with a model and its vocabulary.

    Raises:
        ModelError: the vocabulary has more ids than the model has rows.
        TokenizerError: no known conversation tokens.
    """
    if tokenizer.vocab_size > model.config.vocab_size:
        raise ModelError(
            f"El vocabulario de {origin} tiene {tokenizer.vocab_size} tokens y el modelo solo "
            f"{model.config.vocab_size} filas: no son del mismo modelo."
        )
    family = detect_family(tokenizer, chat_template)
    chat = ChatFormat.for_tokenizer(family, tokenizer, default_system)
    base = bases.match(model.config)
    if base is not None and base.eot_id == chat.stop_ids[0]:
        ids = _Ids(base.bos_id, base.eos_id, base.pad_id, base.doc_prefix_ids, base.chat_eos_ids)
    else:
        base, ids = None, _ids_by_name(family, chat)
    return LoadedModel(
        model=model,
        tokenizer=tokenizer,
        base=base,
        family=family,
        bos_id=ids.bos,
        eos_id=ids.eos,
        chat_eos_ids=ids.chat_eos,
        pad_id=ids.pad,
        doc_prefix_ids=ids.doc_prefix,
        licence=licence or (base.licence if base else UNKNOWN_LICENCE),
        origin=origin,
        chat=chat,
    )


@dataclass(frozen=True)
class _Ids:
    bos: int | None
    eos: int
    pad: int
    doc_prefix: tuple[int, ...]
    chat_eos: tuple[int, ...]


def _ids_by_name(family: Family, chat: ChatFormat) -> _Ids:
    special = chat.tokenizer.special_ids
    eot = chat.stop_ids[0]
    if family == "llama3":
        bos, eos = special["<|begin_of_text|>"], special.get("<|end_of_text|>", eot)
        pad = special.get("<|finetune_right_pad_id|>", eos)
        return _Ids(bos, eos, pad, (bos,), chat.stop_ids)
    eos = special.get("<|endoftext|>", eot)
    return _Ids(special["<|im_start|>"], eos, eot, (eos,), chat.stop_ids)


def _load_hf(path: Path, build: Build, default_system: str | None) -> LoadedModel:
    hf = _read_object(path / "config.json")
    if "quantization_config" in hf:
        raise ModelError(
            f"{path} está cuantizado para otra herramienta (quantization_config): usa la versión "
            "sin cuantizar o un GGUF."
        )
    config = _hf_config(hf, path)
    if not (path / "tokenizer.json").exists():
        raise ModelError(f"A {path} le falta tokenizer.json: elchat no lee otros vocabularios.")
    tokenizer = Tokenizer.from_file(path / "tokenizer.json")
    settings = _optional_object(path / "tokenizer_config.json")
    ours: Any = settings.get("elchat")
    ours = ours if isinstance(ours, dict) else {}
    manifest = _optional_object(path / bases.MANIFEST_FILE)
    model = build(config, _iter_safetensors(path), str(path))
    if default_system is None:
        default_system = ours.get("default_system")
    return build_loaded(
        model,
        tokenizer,
        origin=manifest.get("origin") or str(path),
        licence=manifest.get("licence") or ours.get("licence"),
        default_system=default_system,
        chat_template=_chat_template(path, settings),
    )


def _hf_config(hf: Mapping[str, Any], path: Path) -> GPTConfig:
    try:
        return config_from_hf(hf)
    except (TypeError, ValueError, KeyError, AttributeError, ZeroDivisionError) as error:
        raise ModelError(
            f"El config.json de {path} tiene valores de otro tipo ({error}): bájalo de nuevo."
        ) from None


def _load_gguf(path: Path, build: Build, default_system: str | None) -> LoadedModel:
    file = open_gguf(path)
    tokenizer = Tokenizer.from_json(file.tokenizer_json())
    manifest = _optional_object(path.parent / bases.MANIFEST_FILE)
    model = build(file.config, file.iter_tensors(), str(path))
    known = bases.match(file.config)
    if default_system is None:
        default_system = file.metadata.get(GGUF_SYSTEM_KEY)
    return build_loaded(
        model,
        tokenizer,
        origin=manifest.get("origin") or str(path),
        licence=manifest.get("licence")
        or (known.licence if known else file.metadata.get("general.license")),
        default_system=default_system,
        chat_template=file.metadata.get("tokenizer.chat_template"),
    )


def _materialise(
    config: GPTConfig,
    tensors: Iterable[tuple[str, Tensor]],
    where: str,
    *,
    dtype: torch.dtype,
    device: torch.device | str,
) -> GPT:
    """Build a GPT whose parameters are exactly `tensors`, in eval mode.

    Raises:
        ModelError: a tensor is missing, unexpected, of another shape or not finite.
    """
    model = _empty_model(config, where)
    expected = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    state: dict[str, Tensor] = {}
    unexpected: list[str] = []
    for name, tensor in tensors:
        if name.endswith("rotary_emb.inv_freq"):  # a table old checkpoints carry
            continue
        if name == "lm_head.weight" and config.is_tied:
            state[name] = tensor.to(device, dtype, copy=True)
        elif name not in expected:
            unexpected.append(name)
        else:
            _check_tensor(name, tensor, expected[name], where)
            state[name] = tensor.to(device, dtype, copy=True)
    missing = [name for name in expected if name not in state]
    if missing:
        raise ModelError(f"A {where} le faltan tensores: {_shortlist(missing)}.")
    if unexpected:
        raise ModelError(
            f"En {where} sobran tensores que su config.json no anuncia: {_shortlist(unexpected)}."
        )
    _drop_tied_head(state, config, where)
    model.load_state_dict(state, assign=True)
    return model.eval()


def _empty_model(config: GPTConfig, where: str) -> GPT:
    """Create a GPT without memory; sizes out of a damaged header end here, not in hours of work."""
    absurd = ModelError(
        f"Los tamaños que anuncia {where} no son posibles ({config.n_layers} capas de "
        f"{config.d_model}): el archivo está dañado."
    )
    if not 0 < config.n_layers <= MAX_LAYERS:
        raise absurd
    try:
        with torch.device("meta"):
            return GPT(config)
    except (RuntimeError, TypeError, ValueError, OverflowError):
        raise absurd from None


def _check_tensor(name: str, tensor: Tensor, shape: tuple[int, ...], where: str) -> None:
    if tuple(tensor.shape) != shape:
        raise ModelError(
            f"El tensor {name} de {where} mide {list(tensor.shape)} y su configuración dice "
            f"{list(shape)}: los archivos no son del mismo modelo."
        )
    if not tensor.is_floating_point():
        raise ModelError(
            f"El tensor {name} de {where} no es de coma flotante ({tensor.dtype}): usa los pesos "
            "sin cuantizar."
        )
    if not torch.isfinite(tensor.sum(dtype=torch.float32)):
        raise ModelError(
            f"El tensor {name} de {where} contiene valores que no son números: el archivo está "
            "dañado."
        )


def _drop_tied_head(state: dict[str, Tensor], config: GPTConfig, where: str) -> None:
    """Accept a redundant head in a tied model only if it is the embedding."""
    head = state.pop("lm_head.weight", None) if config.is_tied else None
    if head is not None and not torch.equal(head, state["model.embed_tokens.weight"]):
        raise ModelError(
            f"{where} dice compartir la matriz de entrada y la de salida (tie_word_embeddings) y "
            "trae dos distintas: corrige config.json."
        )


def _iter_safetensors(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """Yield (name, tensor) of every shard; each tensor is a view of the mapped file."""
    for path in _weight_files(folder):
        try:
            with safe_open(path, framework="pt", device="cpu") as shard:
                for name in shard.keys():  # noqa: SIM118  safe_open is not a mapping
                    yield name, shard.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise ModelError(
                f"{path} está dañado o incompleto ({str(error)[:120]}): bórralo y bájalo de nuevo."
            ) from None


def _weight_files(folder: Path) -> list[Path]:
    if (folder / WEIGHTS_FILE).exists():
        return [folder / WEIGHTS_FILE]
    if (folder / INDEX_FILE).exists():
        return _shards(folder)
    if any(folder.glob("*.bin")) or any(folder.glob("*.pth")):
        raise ModelError(
            f"{folder} solo trae pesos en formato pickle (.bin o .pth), que pueden ejecutar código "
            "al abrirse: elchat los rechaza; usa la versión en safetensors."
        )
    raise ModelError(f"En {folder} no hay pesos: falta {WEIGHTS_FILE}.")


def _shards(folder: Path) -> list[Path]:
    weight_map = _read_object(folder / INDEX_FILE).get("weight_map")
    names = list(weight_map.values()) if isinstance(weight_map, dict) else []
    if not names or not all(isinstance(n, str) and Path(n).name == n for n in names):
        raise ModelError(f"{folder / INDEX_FILE} no dice en qué archivos están los pesos.")
    shards = sorted(set(names))
    missing = [name for name in shards if not (folder / name).exists()]
    if missing:
        raise ModelError(f"A {folder} le faltan archivos de pesos: {_shortlist(missing)}.")
    return [folder / name for name in shards]


def _export_state(model: GPT, dtype: torch.dtype) -> dict[str, Tensor]:
    with torch.device("meta"):
        names = list(GPT(model.config).state_dict())
    state = model.state_dict()
    return {name: state[name].detach().to("cpu", dtype).contiguous() for name in names}


def _generation_config(loaded: LoadedModel) -> dict[str, Any]:
    return {
        "bos_token_id": loaded.bos_id,
        "eos_token_id": list(loaded.chat_eos_ids),
        "pad_token_id": loaded.pad_id,
    }


def _special_tokens(loaded: LoadedModel) -> dict[str, str]:
    names = {token_id: name for name, token_id in loaded.tokenizer.special_ids.items()}
    ids = {
        "bos_token": loaded.bos_id,
        "eos_token": loaded.chat_eos_ids[0],
        "pad_token": loaded.pad_id,
    }
    return {key: names[i] for key, i in ids.items() if i is not None and i in names}


def _tokenizer_config(loaded: LoadedModel) -> dict[str, Any]:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **_special_tokens(loaded),
        "add_bos_token": bool(loaded.doc_prefix_ids),
        "clean_up_tokenization_spaces": False,
        "model_max_length": loaded.model.config.max_positions,
        "chat_template": loaded.chat.jinja_template(),
        "elchat": {"default_system": loaded.chat.default_system, "licence": loaded.licence},
    }


def _chat_template(path: Path, settings: Mapping[str, Any]) -> str | None:
    """The vendor's template, from either place `transformers` keeps it."""
    beside = path / "chat_template.jinja"
    if beside.exists():
        return beside.read_text(encoding="utf-8", errors="replace")
    inside = settings.get("chat_template")
    return inside if isinstance(inside, str) else None


def _read_object(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise ModelError(
            f"No existe {path}: hace falta una carpeta de Hugging Face completa o un archivo .gguf."
        ) from None
    except (OSError, ValueError, RecursionError):
        raise ModelError(f"{path} está dañado: no es JSON válido; bájalo de nuevo.") from None
    if not isinstance(value, dict):
        raise ModelError(f"{path} no contiene un objeto JSON: no es de un modelo.")
    return value


def _optional_object(path: Path) -> dict[str, Any]:
    return _read_object(path) if path.exists() else {}


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def _shortlist(names: list[str]) -> str:
    rest = len(names) - MAX_NAMES_SHOWN
    shown = ", ".join(names[:MAX_NAMES_SHOWN])
    return f"{shown} y {rest} más" if rest > 0 else shown
