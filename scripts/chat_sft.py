"""One stage of a run: chat tuning.

    python -m scripts.chat_sft RUN_DIR

The run folder comes from `elchat train`; earlier stages must be finished.
"""

from __future__ import annotations

import sys

from scripts import run


def main(argv: list[str] | None = None) -> int:
    """Run the stage in this process."""
    return run.main([*(sys.argv[1:] if argv is None else argv), "--stage", "sft"])


if __name__ == "__main__":
    sys.exit(main())
