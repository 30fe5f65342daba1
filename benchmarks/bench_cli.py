"""How long the short commands take: `python -m benchmarks.bench_cli`.

Bars: `elchat --help` under 0.3 s, `elchat status` under 0.5 s when nothing is remote (a run of this
machine, and a rented one that ended; there is a key, so the strays' check is started too). Uses
hyperfine when it is installed (its mean and deviation), and our own clock otherwise.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

RUNS = 20
ROOT = Path(__file__).parents[1]
BARS_S = {"--help": 0.3, "status una": 0.5, "status nube": 0.5}


def main() -> int:
    """Print a table and one JSON line; 1 if a bar is missed."""
    with tempfile.TemporaryDirectory() as home:
        env = {**os.environ, "ELCHAT_HOME": home, "PYTHONPATH": str(ROOT)}
        env |= {"RUNPOD_API_KEY": "una_clave", "ELCHAT_RUNPOD_API_URL": "http://127.0.0.1:9"}
        _make_runs(env)
        found = {
            words: _measure([sys.executable, "-m", "cli.main", *words.split()], env)
            for words in BARS_S
        }
    print(f"{'orden':18} {'mediana':>9} {'desv.':>8} {'tope':>6}")
    for word, (median_s, deviation_s) in found.items():
        print(f"elchat {word:11} {median_s:8.3f}s {deviation_s:7.3f}s {BARS_S[word]:5.1f}s")
    answer = {
        "machine": platform.processor() or platform.machine(),
        "python": platform.python_version(),
        "runs": RUNS,
        "seconds": {word: {"median": m, "stdev": d} for word, (m, d) in found.items()},
    }
    print(json.dumps(answer))
    return int(any(median_s > BARS_S[word] for word, (median_s, _) in found.items()))


def _make_runs(env: dict[str, str]) -> None:
    """Two finished runs for `status` to tell of: of this machine, and of one once rented."""
    code = (
        "from pathlib import Path; from elchat import config, runs;"
        "from cli.cloud import record;"
        "c = config.load(Path('configs/training_demo.yaml'));"
        "runs.create(c, provider='local', name='una').update_status(outcome='done');"
        "r = runs.create(c, provider='runpod', name='nube'); r.update_status(outcome='done');"
        "record.save(r, record.Record(phase='done', budget_usd=10.0))"
    )
    subprocess.run([sys.executable, "-c", code], env=env, cwd=ROOT, check=True)


def _measure(argv: list[str], env: dict[str, str]) -> tuple[float, float]:
    """(median or mean, standard deviation) in seconds, after a warm-up."""
    tool = shutil.which("hyperfine")
    if tool is not None:
        with tempfile.NamedTemporaryFile(suffix=".json") as out:
            command = [tool, "--warmup", "3", "--runs", str(RUNS), "--export-json", out.name]
            subprocess.run(
                [*command, " ".join(argv)], env=env, cwd=ROOT, check=True, capture_output=True
            )
            result = json.loads(Path(out.name).read_text())["results"][0]
        return result["median"], result["stddev"]
    times = []
    for _ in range(RUNS + 3):
        began = time.perf_counter()
        subprocess.run(argv, env=env, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        times.append(time.perf_counter() - began)
    return statistics.median(times[3:]), statistics.stdev(times[3:])


if __name__ == "__main__":
    sys.exit(main())
