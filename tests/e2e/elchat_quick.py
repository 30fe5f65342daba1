"""The real `elchat` that looks at its rented machine every second: `elchat_quick.py WORDS...`."""

from __future__ import annotations

import sys

from cli.cloud import boot, care, finish, launch
from cli.main import main

if __name__ == "__main__":
    boot.POLL_S = 0.5
    care.TICK_S = 1.0
    finish.RETRY_S = 1.0
    launch.LIST_EVERY_S = 1.0
    launch.SETTLE_S = 5.0
    sys.exit(main(sys.argv[1:]))
