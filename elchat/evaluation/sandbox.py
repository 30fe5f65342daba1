"""Run a program a model wrote, where it can do little harm.

A process of its own, in a folder of its own that is removed afterwards, with no environment, no
input, and caps on processor time, wall time, memory, file size, processes and open files. On Linux
with user namespaces it has no network and no processes but its own. An audit hook refuses sockets,
other programs, native libraries and writing outside the folder.

What this is not: a virtual machine. Without user namespaces (other systems, hardened kernels) the
network is closed by the hook alone, which code written to escape can undo, and the files of the
user can always be read. That is why code tasks only run when asked for (`--allow-code`).
"""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

CPU_SECONDS = 5
WALL_SECONDS = 10.0
MEMORY_BYTES = 1 << 30
FILE_BYTES = 1 << 20
NAMESPACES = ("--user", "--map-root-user", "--net", "--ipc", "--pid", "--fork", "--kill-child")

# Runs inside the sandbox before the program: caps, then the audit hook. argv: caps, program.
GUARD = """
import os, sys
cpu, memory, size, path = int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
import resource
for name, cap in (("CPU", cpu), ("AS", memory), ("FSIZE", size), ("NOFILE", 64), ("CORE", 0),
                  ("NPROC", 64)):
    resource.setrlimit(getattr(resource, "RLIMIT_" + name), (cap, cap))
source = open(path, encoding="utf-8").read()
home = os.getcwd() + os.sep
refused = ("socket.", "subprocess.", "os.system", "os.exec", "os.fork", "os.posix_spawn",
           "os.spawn", "os.kill", "ctypes.", "pty.", "shutil.", "os.chmod", "os.chown",
           "os.symlink", "os.link", "os.putenv", "webbrowser.", "urllib.")
writes = ("os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.truncate", "os.utime")
def hook(event, args):
    if event.startswith(refused):
        raise PermissionError("prohibido: " + event)
    if event == "open" and (set(str(args[1])) & set("wax+") or
                            isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR)):
        inside(args[0])
    elif event in writes:
        for name in args[:2]:
            if isinstance(name, (str, bytes)):
                inside(name)
def inside(name):
    if isinstance(name, int) or not (os.path.realpath(os.fsdecode(name)) + os.sep).startswith(home):
        raise PermissionError("prohibido escribir fuera")
exec_globals = {"__name__": "__main__"}
code = compile(source, "programa.py", "exec")
sys.addaudithook(hook)
exec(code, exec_globals)
sys.stdout.flush()
os._exit(117)
"""
FINISHED = 117  # says that the last line was reached: a program may well leave with 0 before it


@dataclass(frozen=True)
class Outcome:
    """How a program ended: `reason` is "ok", "error" or "time" (of the wall)."""

    is_ok: bool
    reason: str
    output: str


def run_program(
    source: str, *, cpu_seconds: int = CPU_SECONDS, wall_seconds: float = WALL_SECONDS
) -> Outcome:
    """Run Python source to its end; it is right if it gets there."""
    with tempfile.TemporaryDirectory(prefix="elchat-caja-") as name:
        folder = Path(name)
        (folder / "programa.py").write_text(source, encoding="utf-8", errors="replace")
        caps = [str(cpu_seconds), str(MEMORY_BYTES), str(FILE_BYTES)]
        argv = [*isolation(), sys.executable, "-I", "-S", "-c", GUARD, *caps, "programa.py"]
        with open(folder / "salida", "wb") as out:
            process = subprocess.Popen(
                argv,
                cwd=folder,
                env={"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8"},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        reason = _wait(process, wall_seconds)
        text = (folder / "salida").read_bytes()[-2000:].decode("utf-8", "replace")
    return Outcome(reason == "ok", reason, text)


@functools.cache
def isolation() -> tuple[str, ...]:
    """The command that removes network and other processes, or nothing where it does not work."""
    unshare = shutil.which("unshare")
    if unshare is None or not sys.platform.startswith("linux"):
        return ()
    command = (unshare, *NAMESPACES, "--")
    try:
        done = subprocess.run([*command, "true"], capture_output=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ()
    return command if done.returncode == 0 else ()


def _wait(process: subprocess.Popen[bytes], wall_seconds: float) -> str:
    try:
        code = process.wait(wall_seconds)
    except subprocess.TimeoutExpired:
        return "time"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return "ok" if code == FINISHED else "error"
