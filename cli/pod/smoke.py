"""Does the rented GPU work? Prints its name, or fails with the reason.

A host whose GPU is busy, broken or of another kind has been seen; finding out costs seconds.
"""

from __future__ import annotations

import sys

import torch

MAX_USED_SHARE = 0.2


def main() -> str:
    """Multiply matrices on the GPU and look at the memory others use."""
    if not torch.cuda.is_available():
        raise SystemExit("no hay ninguna GPU que torch vea")
    free, total = torch.cuda.mem_get_info()
    if free < (1 - MAX_USED_SHARE) * total:
        raise SystemExit("la GPU está ocupada por otros")
    x = torch.randn(2048, 2048, device="cuda", dtype=torch.bfloat16)
    y = (x @ x).float()
    if not bool(torch.isfinite(y).all()) or float(y.abs().max()) == 0.0:
        raise SystemExit("la GPU calcula mal")
    return str(torch.cuda.get_device_name())


if __name__ == "__main__":
    print(main())
    sys.exit(0)
