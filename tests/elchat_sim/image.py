"""What is on the container disk of a real pod when it starts: our own tiny "image"."""

from __future__ import annotations

import shlex
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

SYSTEM = ("usr", "bin", "sbin", "lib", "lib32", "lib64", "libx32", "opt")
COPIED = (
    "ld.so.cache", "ld.so.conf", "ld.so.conf.d", "ssl/certs", "ssl/openssl.cnf", "resolv.conf",
    "alternatives", "localtime", "mime.types",
)  # fmt: skip
FOLDERS = (
    "dev", "proc", "sys", "tmp", "root", "run/sshd", "var/log", "var/tmp", "etc/ssh", "workspace",
    "sim/bin", "opt",
)  # fmt: skip
ENTRYPOINT = "/sim/nvidia_entrypoint.sh"

# Facts of the official images: key, host keys, sshd, environment file, then sleep for ever.
START_SH = """#!/bin/bash
set -e
if [ -n "$PUBLIC_KEY" ] && [ {has_sshd} = 1 ]; then
  mkdir -p ~/.ssh && chmod 700 ~/.ssh
  echo "$PUBLIC_KEY" >> ~/.ssh/authorized_keys && chmod 600 ~/.ssh/authorized_keys
  for kind in ecdsa ed25519; do  # no RSA: making one takes seconds
    file=/etc/ssh/ssh_host_${{kind}}_key
    [ -f $file ] || ssh-keygen -q -t $kind -N "" -f $file
  done
  for key in /etc/ssh/ssh_host_*_key.pub; do ssh-keygen -lf "$key"; done
  (sleep {sshd_delay_s}; exec {sshd} -D -f /etc/ssh/sshd_config -E /var/log/sshd.log) &
fi
python3 -c 'import os, shlex
for name, value in os.environ.items():
    if name.isidentifier():
        print("export " + name + "=" + shlex.quote(value))' > /etc/rp_environment
echo 'source /etc/rp_environment' >> ~/.bashrc
if [ -f /pre_start.sh ]; then bash /pre_start.sh; fi
echo "Start script(s) finished, Pod is ready to use."
if [ -f /post_start.sh ]; then bash /post_start.sh; fi
sleep infinity
"""

SSHD_CONFIG = """Port {port}
ListenAddress 127.0.0.1
PermitRootLogin prohibit-password
PasswordAuthentication no
KbdInteractiveAuthentication no
UsePAM no
StrictModes no
PidFile /run/sshd.pid
PrintMotd no
MaxStartups 100
Subsystem sftp internal-sftp
SetEnv PATH={path}
"""

NVIDIA_SMI = """#!/bin/sh
# A stand-in: there is no GPU here. It fails once the simulator breaks the GPU.
if [ -e /sim/gpu_broken ]; then
  echo "Unable to determine the device handle for GPU0000:01:00.0: Unknown Error" >&2; exit 15
fi
case "$*" in
  *query-gpu*noheader*) echo "{name}, {memory_mib} MiB" ;;
  *query-gpu*) echo "name, memory.total [MiB]"; echo "{name}, {memory_mib} MiB" ;;
  -L*) echo "GPU 0: {name} (UUID: GPU-00000000-sim)" ;;
  *) echo "NVIDIA-SMI 570.00  Driver Version: 570.00  CUDA Version: {cuda}"; echo "{name}" ;;
esac
"""


@dataclass(frozen=True)
class Image:
    """What varies from pod to pod."""

    sshd_port: int
    has_sshd: bool
    sshd_delay_s: float
    gpu_name: str
    gpu_memory_gb: int
    cuda: str
    is_gpu_healthy: bool
    user_id: int = 0  # whom the host sees as the pod's root
    group_id: int = 0

    @property
    def path(self) -> str:
        python = Path(sys.prefix) / "bin"
        return f"/sim/bin:{python}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

    def lay_out(self, disk: Path) -> None:
        """Fill an empty container disk."""
        for folder in FOLDERS:
            (disk / folder).mkdir(parents=True, exist_ok=True)
        (disk / "tmp").chmod(0o1777)
        (disk / "root").chmod(0o700)
        self._etc(disk / "etc")
        sshd = shutil.which("sshd", path="/usr/sbin:/usr/local/sbin:/usr/bin") or "/usr/sbin/sshd"
        start = START_SH.format(
            has_sshd=int(self.has_sshd), sshd_delay_s=self.sshd_delay_s, sshd=sshd
        )
        _script(disk / "start.sh", start)
        # As Ubuntu has it: a command over ssh leaves here, and sees nothing of PID 1's environment.
        (disk / "root/.bashrc").write_text('[ -z "$PS1" ] && return\n')
        _script(disk / ENTRYPOINT[1:], '#!/bin/bash\nexec "$@"\n')
        smi = NVIDIA_SMI.format(
            name=self.gpu_name, memory_mib=self.gpu_memory_gb * 1024, cuda=self.cuda
        )
        _script(disk / "sim/bin/nvidia-smi", smi)
        if not self.is_gpu_healthy:
            (disk / "sim/gpu_broken").touch()

    def _etc(self, etc: Path) -> None:
        for name in COPIED:
            source = Path("/etc") / name
            (etc / name).parent.mkdir(parents=True, exist_ok=True)
            if source.is_dir():
                shutil.copytree(source, etc / name, symlinks=True, dirs_exist_ok=True)
            elif source.exists():
                shutil.copy(source, etc / name)
        (etc / "passwd").write_text(
            f"root:*:{self.user_id}:{self.group_id}:root:/root:/bin/bash\n"
            "sshd:*:101:65534::/run/sshd:/usr/sbin/nologin\n"
        )
        (etc / "group").write_text(f"root:x:{self.group_id}:\ntty:x:5:\n")
        (etc / "hosts").write_text("127.0.0.1 localhost\n")
        (etc / "nsswitch.conf").write_text("passwd: files\ngroup: files\nhosts: files dns\n")
        config = SSHD_CONFIG.format(port=self.sshd_port, path=self.path)
        (etc / "ssh/sshd_config").write_text(config)


def mount_script(disk: Path, volume: Path | None, mount_path: str | None, binds: list[Path]) -> str:
    """Shell text that turns `disk` into a root file system; for a private mount namespace.

    The system's folders and the Python that runs the tests are seen from the host; everything
    else is the container's own.
    """
    lines = ["set -e"]
    for name in SYSTEM:
        source = Path("/") / name
        if source.is_symlink():
            lines.append(f"ln -sfn {shlex.quote(str(source.readlink()))} {_in(disk, source)}")
        elif source.is_dir():
            lines.append(_bind(disk, source))
    lines += [_bind(disk, path) for path in _not_covered([*_python_folders(), *binds])]
    lines.append(_bind(disk, Path("/dev")))
    lines.append(f"mount -t proc proc {_in(disk, Path('/proc'))}")
    if volume is not None and mount_path is not None:
        target = _in(disk, Path(mount_path))
        lines.append(f"mkdir -p {target}")
        lines.append(f"mount --bind {shlex.quote(str(volume))} {target}")
    return "\n".join(lines) + "\n"


def _python_folders() -> list[Path]:
    """Where the running Python and its packages live, symbolic links followed."""
    executable = Path(sys.executable)
    found = [Path(sys.prefix), Path(sys.base_prefix), executable.resolve().parent.parent]
    return list(dict.fromkeys(found))


def _not_covered(paths: list[Path]) -> list[Path]:
    """Those not already seen through a system folder or through another one of the list."""
    kept: list[Path] = []
    for path in sorted({path.absolute() for path in paths}, key=lambda p: len(p.parts)):
        parents = [Path("/") / name for name in SYSTEM] + kept
        if path.parts[1] not in SYSTEM and not any(path.is_relative_to(p) for p in parents):
            kept.append(path)
    return kept


def _bind(disk: Path, source: Path) -> str:
    target = _in(disk, source)
    return f"mkdir -p {target} && mount --rbind {shlex.quote(str(source))} {target}"


def _in(disk: Path, path: Path) -> str:
    return shlex.quote(str(disk) + str(path))


def _script(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)
