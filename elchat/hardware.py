"""What the machines are: GPU peaks and memory, CPU cores and instruction sets. No torch.

Peaks are the vendors' dense bf16 figures with fp32 accumulation (no sparsity), in TFLOP/s: the
denominator of MFU. What a small model really achieves of them lives in `elchat.estimate`.
"""

from __future__ import annotations

import difflib
import os
import platform
import re
import sys
from dataclasses import dataclass
from pathlib import Path

from elchat.errors import ConfigError


@dataclass(frozen=True)
class Gpu:
    """One GPU model.

    Attributes:
        id: RunPod's `gpuTypeId`, which is also the name the driver reports.
        name: short name for tables.
        vram_gib: memory as the catalogue states it.
        peak_tflops: dense bf16 peak, fp32 accumulation.
        device_pattern: regular expression for the whole of `torch.cuda.get_device_name()`.
    """

    id: str
    name: str
    vram_gib: int
    peak_tflops: float
    device_pattern: str


# Source: vendor data sheets, as collected in reference/recipes.md §4.1.
GPUS: tuple[Gpu, ...] = (
    Gpu("NVIDIA GeForce RTX 3090", "RTX 3090", 24, 71.0, r"NVIDIA GeForce RTX 3090"),
    Gpu("NVIDIA GeForce RTX 4090", "RTX 4090", 24, 165.2, r"NVIDIA GeForce RTX 4090"),
    Gpu("NVIDIA GeForce RTX 5090", "RTX 5090", 32, 209.5, r"NVIDIA GeForce RTX 5090"),
    Gpu("NVIDIA L4", "L4", 24, 121.0, r"NVIDIA L4"),
    Gpu("NVIDIA A40", "A40", 48, 149.7, r"NVIDIA A40"),
    Gpu("NVIDIA RTX A6000", "RTX A6000", 48, 154.8, r"NVIDIA RTX A6000"),
    Gpu("NVIDIA L40", "L40", 48, 181.0, r"NVIDIA L40"),
    Gpu("NVIDIA L40S", "L40S", 48, 362.0, r"NVIDIA L40S"),
    Gpu("NVIDIA A100 80GB PCIe", "A100 PCIe", 80, 312.0, r"NVIDIA A100(-PCIE-40GB| 80GB PCIe)"),
    Gpu("NVIDIA A100-SXM4-80GB", "A100 SXM", 80, 312.0, r"NVIDIA A100-SXM4-[48]0GB"),
    Gpu("NVIDIA H100 PCIe", "H100 PCIe", 80, 756.0, r"NVIDIA H100 PCIe"),
    Gpu("NVIDIA H100 NVL", "H100 NVL", 94, 835.0, r"NVIDIA H100 NVL"),
    Gpu("NVIDIA H100 80GB HBM3", "H100 SXM", 80, 989.0, r"NVIDIA H100 80GB HBM3"),
    Gpu("NVIDIA H200", "H200 SXM", 141, 989.0, r"NVIDIA H200"),
    Gpu("NVIDIA B200", "B200", 180, 2250.0, r"NVIDIA B200"),
    Gpu("NVIDIA B300 SXM6 AC", "B300", 288, 2250.0, r"NVIDIA B300( SXM6 AC)?"),
)
_BY_ID = {gpu.id: gpu for gpu in GPUS}


def gpu_by_id(gpu_id: str) -> Gpu:
    """The GPU with a RunPod id.

    Raises:
        ConfigError: not in the table; names the closest id.
    """
    if gpu_id in _BY_ID:
        return _BY_ID[gpu_id]
    close = difflib.get_close_matches(gpu_id, _BY_ID, n=1, cutoff=0.4)
    raise ConfigError(
        f"No se conoce la GPU «{gpu_id}» de compute.gpus"
        + (f"; ¿quisiste decir «{close[0]}»?" if close else "."),
        hint="Mira las que hay y lo que cuestan: elchat estimate",
    )


def gpu_for_device(device_name: str) -> Gpu | None:
    """The GPU a driver's device name stands for, or None (laptop chips, other vendors)."""
    for gpu in GPUS:
        if re.fullmatch(gpu.device_pattern, device_name.strip()):
            return gpu
    return None


def usable_cores() -> int:
    """Physical cores this process may run on: hyper-threads do not speed up matmuls."""
    try:
        cpus = os.sched_getaffinity(0)
    except AttributeError:
        return os.cpu_count() or 1
    siblings = {_core_of(cpu) for cpu in cpus}
    return max(1, len(siblings))


def _core_of(cpu: int) -> str:
    topology = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
    try:
        return topology.read_text().strip()
    except OSError:
        return str(cpu)


def memory_bytes() -> int | None:
    """Memory of the machine, or of the container when its limit is lower."""
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return None
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
    except OSError:
        return total
    return min(total, int(limit)) if limit.isdigit() else total


def resident_bytes() -> int:
    """Resident memory of this process now; its peak where the system only tells that."""
    return _status_bytes("VmRSS") or _max_rss_bytes()


def peak_resident_bytes() -> int:
    """Highest resident memory of this process.

    Linux's `ru_maxrss` also counts the parent at the moment of the fork, so that a small process
    started by a large one looks large; VmHWM belongs to the program alone.
    """
    return _status_bytes("VmHWM") or _max_rss_bytes()


def _status_bytes(field: str) -> int | None:
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    found = re.search(rf"^{field}:\s+(\d+) kB$", status, re.MULTILINE)
    return int(found[1]) * 1024 if found else None


def _max_rss_bytes() -> int:
    import resource  # not on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def cpu_flags() -> frozenset[str]:
    """Instruction sets of the CPU as Linux names them; empty where that is unknown."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return frozenset()
    found = re.search(r"^(?:flags|Features)\s*:\s*(.*)$", text, flags=re.MULTILINE)
    return frozenset(found.group(1).split()) if found else frozenset()


def cpu_peak_tflops(cores: int, flags: frozenset[str]) -> float:
    """Matmul peak of a CPU at about 2.5 GHz, from its widest instructions.

    A guess to plan with: the worker measures the real one before it reports MFU. Per core and
    cycle: AMX 256 useful bf16 FLOPs sustained by oneDNN, AVX512-BF16 128, AVX-512 fp32 64,
    AVX2 fp32 32, anything else (Apple, ARM) 32.
    """
    if "amx_bf16" in flags:
        flops_per_cycle = 256
    elif "avx512_bf16" in flags:
        flops_per_cycle = 128
    elif "avx512f" in flags:
        flops_per_cycle = 64
    else:
        flops_per_cycle = 32
    return cores * flops_per_cycle * 2.5e9 / 1e12


def has_glibc() -> bool:
    """Whether the C library is glibc, whose malloc can use huge pages."""
    return platform.system() == "Linux" and platform.libc_ver()[0] == "glibc"
