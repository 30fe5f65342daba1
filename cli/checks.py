"""What `elchat doctor` looks at. Only what can be told without importing torch."""

from __future__ import annotations

import os
import platform
import shutil
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module, metadata, util
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from cli.output import dollars, duration, number
from elchat import hardware, paths
from elchat.errors import ElchatError
from elchat.files import format_bytes, free_bytes

HUB_TIMEOUT_S = 2.0
MIN_BALANCE_USD = 1.0
MIN_DISK_BYTES = 5e9
MIN_MEMORY_BYTES = 4e9
PINNED_TORCH = "2.13.0"


@dataclass(frozen=True)
class Check:
    """One finding; only an `error` makes elchat unusable here."""

    name: str
    level: Literal["ok", "warning", "error"]
    text: str


def run_all() -> list[Check]:
    """Every check, in the order they are shown."""
    checks: list[Callable[[], Check]] = [
        python, torch, disk, memory, cores, compiler, huge_pages, hub, tokenizers, ssh, rsync,
    ]  # fmt: skip
    return [*(check() for check in checks), *runpod()]


def python() -> Check:
    """Interpreter version."""
    level: Literal["ok", "error"] = "ok" if sys.version_info >= (3, 10) else "error"
    return Check("Python", level, f"{platform.python_version()} (hace falta 3.10 o más)")


def torch() -> Check:
    """Installed torch, by its package data: importing it takes seconds."""
    try:
        version = metadata.version("torch")
    except metadata.PackageNotFoundError:
        return Check("PyTorch", "error", "no está instalado: pip install -e .")
    if version.split("+")[0] != PINNED_TORCH:
        return Check("PyTorch", "warning", f"{version}; elchat se prueba con {PINNED_TORCH}")
    return Check("PyTorch", "ok", version)


def disk() -> Check:
    """Free space where runs are written."""
    free = free_bytes(paths.home())
    text = f"{format_bytes(free)} libres en {paths.home()}"
    if free < MIN_DISK_BYTES:
        return Check("disco", "error", text + f"; hacen falta {format_bytes(MIN_DISK_BYTES)}")
    return Check("disco", "ok", text)


def memory() -> Check:
    """Memory of the machine or container."""
    total = hardware.memory_bytes()
    if total is None:
        return Check("memoria", "warning", "no se pudo averiguar")
    if total < MIN_MEMORY_BYTES:
        return Check("memoria", "warning", f"{format_bytes(total)}; la demo usa unos 4 GB")
    return Check("memoria", "ok", format_bytes(total))


def cores() -> Check:
    """Usable cores and their widest instructions."""
    flags = hardware.cpu_flags()
    widest = next((f for f in ("amx_bf16", "avx512_bf16", "avx512f", "avx2") if f in flags), None)
    text = f"{hardware.usable_cores()} núcleos" + (f", {widest}" if widest else "")
    return Check("CPU", "ok", text)


def compiler() -> Check:
    """A C compiler, which torch.compile needs."""
    found = next((path for name in ("cc", "gcc", "clang") if (path := shutil.which(name))), None)
    if found is None:
        return Check("compilador", "warning", "no hay; solo lo necesita torch.compile en GPU")
    return Check("compilador", "ok", found)


def huge_pages() -> Check:
    """Transparent huge pages, worth +20 % of speed on a CPU."""
    path = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    try:
        chosen = path.read_text().partition("[")[2].partition("]")[0]
    except OSError:
        return Check("páginas grandes", "warning", "este sistema no las ofrece")
    if chosen in ("madvise", "always") and hardware.has_glibc():
        return Check("páginas grandes", "ok", chosen)
    return Check("páginas grandes", "warning", f"{chosen or 'sin datos'}: la CPU irá más lenta")


def hub() -> Check:
    """Whether the Hugging Face hub takes a connection (nothing is sent)."""
    address = urlsplit(os.environ.get("HF_ENDPOINT") or "https://huggingface.co")
    port = address.port or (443 if address.scheme == "https" else 80)
    name = address.hostname or "huggingface.co"
    try:
        socket.create_connection((name, port), timeout=HUB_TIMEOUT_S).close()
    except OSError:
        text = f"{name} no responde: la demo funciona igual; los demás modelos se descargan de ahí"
        return Check("hub", "warning", text)
    return Check("hub", "ok", f"{name} responde")


def ssh() -> Check:
    """OpenSSH, for the rented machine."""
    return _cloud_tool("ssh", "openssh-client")


def rsync() -> Check:
    """rsync, for the rented machine."""
    return _cloud_tool("rsync", "rsync")


def runpod() -> list[Check]:
    """The account: key, balance and machines nobody looks after. Its key is never shown."""
    key = os.environ.get("RUNPOD_API_KEY", "").strip()
    if not key:
        text = "no está: solo hace falta para alquilar una GPU"
        return [Check("RUNPOD_API_KEY", "ok", text)]
    from cli.cloud import strays
    from cli.runpod_client import AuthRefused, Forbidden, RunpodClient, RunpodError

    try:
        client = RunpodClient(key)
        found = strays.find(client, time.time())
        account, volumes = client.account(), client.volumes()
    except AuthRefused:
        return [Check("RUNPOD_API_KEY", "error", "RunPod la rechaza: crea otra en su consola")]
    except Forbidden:
        text = "no tiene permisos: crea en la consola una de lectura y escritura"
        return [Check("RUNPOD_API_KEY", "error", text)]
    except ElchatError as error:
        return [Check("RUNPOD_API_KEY", "error", str(error))]
    except RunpodError as error:
        return [Check("RUNPOD_API_KEY", "warning", f"puesta; RunPod no responde ({error})")]
    checks = [Check("RUNPOD_API_KEY", "ok", "RunPod la acepta")]
    balance = account.clientBalance if account else None
    if balance is None:
        checks.append(Check("saldo", "warning", "RunPod no lo dice"))
    else:
        level: Literal["ok", "warning"] = "ok" if balance >= MIN_BALANCE_USD else "warning"
        checks.append(Check("saldo", level, dollars(balance)))
    if client.skew_s:
        side = "atrasado" if client.skew_s > 0 else "adelantado"
        text = f"{duration(abs(client.skew_s))} {side}; el dinero se cuenta con el de RunPod"
        checks.append(Check("reloj", "warning", text))
    if volumes:
        sizes = ", ".join(f"{item.name} ({item.size} GB)" for item in volumes)
        text = f"{sizes}: se pagan siempre; elchat ni los usa ni los borra"
        checks.append(Check("volúmenes de red", "warning", text))
    if not found:
        return [*checks, Check("máquinas sueltas", "ok", "ninguna")]
    rows = (f"{item.name} a {number(item.usd_per_h, 2)} $/h" for item in found)
    text = "; ".join(rows) + ". Bórralas: elchat stop --all"
    return [*checks, Check("máquinas sueltas", "error", text)]


def _cloud_tool(name: str, package: str) -> Check:
    path = shutil.which(name)
    if path is not None:
        return Check(name, "ok", path)
    text = f"no está: solo hace falta para alquilar una GPU (paquete {package})"
    return Check(name, "warning", text)


def tokenizers() -> Check:
    """Which tokenizer backend would be used."""
    try:
        version = metadata.version("tokenizers")
    except metadata.PackageNotFoundError:
        return Check("tokenizador", "error", "falta el paquete tokenizers: pip install -e .")
    reason = _rustbpe_problem()
    if reason is None:
        return Check("tokenizador", "ok", f"rustbpe (tokenizers {version} para lo demás)")
    return Check("tokenizador", "ok", f"tokenizers {version}; {reason}")


def _rustbpe_problem() -> str | None:
    """Why the Rust library is not used; importing its package needs neither it nor numpy."""
    if util.find_spec("elchat_bpe") is None:
        return "rustbpe no está instalado"
    reason = import_module("elchat_bpe").why_not()
    return str(reason) if reason else None
