"""`python -m elchat_sim --port 0 --faults FILE.json --state DIR`: the simulator as a process."""

from __future__ import annotations

import argparse
import json
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Literal

from .faults import FaultScript, FaultScriptError, load
from .simulator import Simulator


def main(argv: list[str] | None = None) -> int:
    """Listen until SIGINT or SIGTERM; the first line of the output is a JSON with the address."""
    parser = argparse.ArgumentParser(prog="elchat_sim", description="RunPod simulado")
    parser.add_argument("--port", type=int, default=0, help="puerto en 127.0.0.1 (0: uno libre)")
    parser.add_argument("--faults", type=Path, help="guion de fallos (docs/simulador.md)")
    parser.add_argument("--state", type=Path, help="carpeta para los discos de los pods")
    parser.add_argument(
        "--bind", type=Path, action="append", default=[], help="ruta del anfitrión que los pods ven"
    )
    parser.add_argument(
        "--virtual", action="store_true", help="pods sin procesos (el reloj es el de la máquina)"
    )
    given = parser.parse_args(argv)
    try:
        faults = load(given.faults) if given.faults else FaultScript()
    except FaultScriptError as error:
        print(error, file=sys.stderr)
        return 2
    stopping = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopping.set())
    state = given.state or Path(tempfile.mkdtemp(prefix="elchat-sim-"))
    kind: Literal["virtual", "real"] = "virtual" if given.virtual else "real"
    simulator = Simulator(
        faults, pods=kind, port=given.port, state=state, binds=given.bind, start=time.time()
    )
    with simulator:
        started = {"base_url": simulator.base_url, "key": faults.account.key, "state": str(state)}
        print(json.dumps(started), flush=True)
        while not stopping.wait(0.05):
            if given.virtual:
                simulator.sleep_with_the_computer()
    return 0


if __name__ == "__main__":
    sys.exit(main())
