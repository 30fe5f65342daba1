"""Commands and files in a rented machine, over the system's OpenSSH and rsync.

The server is pinned on first contact under the pod's name (ports and addresses change) and then
recognised by the guard's signature over its host keys; the client key belongs to the run alone.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from elchat.errors import DiskError, ProviderError
from elchat.files import write_text

SHORT_S = 40.0
CONFIG = """\
Host *
  User root
  IdentityFile "{folder}/id_ed25519"
  IdentitiesOnly yes
  UserKnownHostsFile "{folder}/known_hosts"
  GlobalKnownHostsFile /dev/null
  StrictHostKeyChecking accept-new
  HashKnownHosts no
  UpdateHostKeys no
  HostKeyAlgorithms ssh-ed25519
  BatchMode yes
  ConnectTimeout 10
  ServerAliveInterval 15
  ServerAliveCountMax 3
  ControlMaster auto
  ControlPath "{sockets}/%C"
  ControlPersist 60
  LogLevel ERROR
"""


class Unreachable(Exception):
    """No answer now; it may come back."""


class HostKeyChanged(Exception):
    """The server is not the pinned one: its container was restarted, or it is another."""


class RemoteFailure(Exception):
    """A command ran there and failed; the text is the end of what it said."""


@dataclass(frozen=True)
class Where:
    """An SSH server of a pod; `alias` is the pod's name."""

    host: str
    port: int
    alias: str


class Remote(Protocol):
    """What the rest needs of a pod. Every method may raise Unreachable or HostKeyChanged."""

    def check_tools(self) -> None:
        """Raise ProviderError when this computer lacks ssh or rsync."""

    def public_key(self) -> str:
        """The run's public key, made on first use."""

    def host_key(self, where: Where) -> str:
        """Connect, and return the pinned host key (type and body)."""

    def forget(self, where: Where) -> None:
        """Drop the pinned host key."""

    def read(self, where: Where, path: str) -> str | None:
        """A text file, or None if it is not there."""

    def write(self, where: Where, path: str, text: str) -> None:
        """Replace a text file; its folder is made."""

    def helper(self, where: Where, *args: str) -> dict[str, Any]:
        """Run a task of cli/pod/helper.py (RemoteFailure)."""

    def shell(self, where: Where, command: str, timeout_s: float) -> str:
        """Run a shell command and return what it printed (RemoteFailure)."""

    def push(self, where: Where, sources: Sequence[str], target: str, timeout_s: float) -> None:
        """Copy files or folders into a remote folder (rsync rules for a final slash)."""

    def pull(
        self, where: Where, source: str, target: Path, timeout_s: float, *options: str
    ) -> bool:
        """Copy from there; False if the time ran out (call again: it goes on)."""


class OpenSsh:
    """See `Remote`.

    Args:
        folder: private folder of the run for keys and known hosts.
        helper_path: where helper.py lies in the pod.
    """

    def __init__(self, folder: Path, helper_path: str) -> None:
        self._folder = folder
        self._helper_path = helper_path

    def check_tools(self) -> None:
        packages = {"ssh": "openssh-client", "ssh-keygen": "openssh-client", "rsync": "rsync"}
        missing = [tool for tool in packages if shutil.which(tool) is None]
        if missing:
            names = " ".join(sorted({packages[tool] for tool in missing}))
            raise ProviderError(
                f"Falta {', '.join(missing)} en este ordenador y hace falta para hablar con la "
                "máquina alquilada; no se ha alquilado nada.",
                hint=f"Debian o Ubuntu: sudo apt install {names}   macOS: brew install rsync",
            )

    def public_key(self) -> str:
        private = self._folder / "id_ed25519"
        self._folder.mkdir(parents=True, exist_ok=True)
        os.chmod(self._folder, 0o700)
        if not private.with_suffix(".pub").exists():
            private.unlink(missing_ok=True)
            argv = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "elchat", "-f"]
            subprocess.run([*argv, str(private)], check=True, capture_output=True, timeout=30)
        return private.with_suffix(".pub").read_text(encoding="utf-8").strip()

    def host_key(self, where: Where) -> str:
        self._ssh(where, "true")
        for line in (self._folder / "known_hosts").read_text(encoding="utf-8").splitlines():
            names, _, key = line.partition(" ")
            if where.alias in names.split(","):
                return " ".join(key.split()[:2])
        raise Unreachable("el servidor no dejó su clave")

    def forget(self, where: Where) -> None:
        path = self._folder / "known_hosts"
        if path.exists():
            kept = [
                line
                for line in path.read_text(encoding="utf-8").splitlines(keepends=True)
                if where.alias not in line.partition(" ")[0].split(",")
            ]
            write_text(path, "".join(kept))
        self._close_master(where)

    def read(self, where: Where, path: str) -> str | None:
        quoted = shlex.quote(path)
        text = self._ssh(where, f"if test -f {quoted}; then echo +; cat {quoted}; fi")
        return text.partition("\n")[2] if text.startswith("+") else None

    def write(self, where: Where, path: str, text: str) -> None:
        folder, temporary = shlex.quote(os.path.dirname(path)), shlex.quote(path + ".tmp")
        command = f"mkdir -p {folder} && cat > {temporary} && mv {temporary} {shlex.quote(path)}"
        self._ssh(where, command, text=text)

    def helper(self, where: Where, *args: str) -> dict[str, Any]:
        words = " ".join(map(shlex.quote, args))
        text = self._ssh(where, f"python3 {shlex.quote(self._helper_path)} {words}")
        try:
            return dict(json.loads(text))
        except ValueError:
            raise RemoteFailure(text[-200:]) from None

    def shell(self, where: Where, command: str, timeout_s: float) -> str:
        return self._ssh(where, command, timeout_s=timeout_s)

    def push(self, where: Where, sources: Sequence[str], target: str, timeout_s: float) -> None:
        self._ssh(where, f"mkdir -p {shlex.quote(target)}")
        argv = self._rsync(where, "--exclude", "__pycache__", *sources)
        if not self._transfer([*argv, f"elchat:{target}/"], timeout_s, target):
            raise Unreachable("la subida no terminó a tiempo")

    def pull(
        self, where: Where, source: str, target: Path, timeout_s: float, *options: str
    ) -> bool:
        target.mkdir(parents=True, exist_ok=True)
        argv = self._rsync(where, "--partial", "--inplace", *options, f"elchat:{source}")
        return self._transfer([*argv, f"{target}/"], timeout_s, str(target))

    # --- one command -----------------------------------------------------------------------------

    def _options(self, where: Where) -> list[str]:
        return [
            "-F", str(self._config()), "-p", str(where.port),
            "-o", f"HostName={where.host}", "-o", f"HostKeyAlias={where.alias}",
        ]  # fmt: skip

    def _config(self) -> Path:
        path = self._folder / "config"
        if not path.exists():
            self._folder.mkdir(parents=True, exist_ok=True)
            text = CONFIG.format(folder=self._folder, sockets=_socket_folder())
            write_text(path, text)
        return path

    def _rsync(self, where: Where, *words: str) -> list[str]:
        shell = " ".join(map(shlex.quote, ["ssh", *self._options(where)]))
        return ["rsync", "-rltp", "--timeout=30", "-e", shell, *words]

    def _ssh(
        self, where: Where, command: str, *, text: str | None = None, timeout_s: float = SHORT_S
    ) -> str:
        argv = ["ssh", *self._options(where), "elchat", command]
        try:
            done = subprocess.run(
                argv,
                input=(text or "").encode(),
                capture_output=True,
                timeout=timeout_s,
            )
        except subprocess.TimeoutExpired:
            self._close_master(where)
            raise Unreachable(f"no respondió en {timeout_s:.0f} s") from None
        error = done.stderr.decode("utf-8", "replace").strip()
        _raise_if_changed(error)
        if done.returncode == 255:
            raise Unreachable(error[-200:])
        output = done.stdout.decode("utf-8", "replace")
        if done.returncode != 0:
            raise RemoteFailure((error or output)[-400:])
        return output

    def _transfer(self, argv: list[str], timeout_s: float, target: str) -> bool:
        """Run rsync; True if everything arrived, False if the time ran out."""
        try:
            done = subprocess.run(
                argv, stdin=subprocess.DEVNULL, capture_output=True, timeout=timeout_s
            )
        except subprocess.TimeoutExpired:
            return False
        error = done.stderr.decode("utf-8", "replace").strip()
        if done.returncode == 0:
            return True
        _raise_if_changed(error)
        if "No space left on device" in error or "Disk quota exceeded" in error:
            if target.startswith(str(self._folder.parent.parent)):
                raise DiskError(f"El disco de este ordenador se llenó al descargar en {target}.")
            raise RemoteFailure("el disco de la máquina alquilada está lleno (compute.disk_gb)")
        if done.returncode == 127 or "rsync: command not found" in error:
            raise RemoteFailure("la máquina alquilada no tiene rsync")
        raise Unreachable(error[-200:])

    def _close_master(self, where: Where) -> None:
        argv = ["ssh", *self._options(where), "-O", "exit", "elchat"]
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            subprocess.run(argv, capture_output=True, timeout=5)


def _raise_if_changed(error: str) -> None:
    if re.search(r"host key .*(changed|verification failed)", error, re.IGNORECASE):
        raise HostKeyChanged(error[-200:])


def _socket_folder() -> Path:
    """A short private folder: socket paths are limited to about a hundred bytes."""
    folder = Path(tempfile.gettempdir()) / f"elchat-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise ProviderError(f"La carpeta {folder} es de otro usuario: bórrala.")
    return folder
