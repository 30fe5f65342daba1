"""The real `elchat` with the fake worker: `python tests/e2e/elchat_fake.py WORDS...`."""

from __future__ import annotations

import sys
from pathlib import Path

from cli.local_provider import LocalProvider
from cli.main import main


def local() -> LocalProvider:
    worker = [sys.executable, str(Path(__file__).with_name("fake_worker.py"))]
    return LocalProvider(worker, first_sign_s=20, save_s=1, term_s=0.5)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], providers={"local": local}))
