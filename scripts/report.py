"""Write the report of a run, or compare several.

python -m scripts.report RUN [RUN ...] [--out FILE] [--json]

What `elchat report` starts; the work is elchat.report's.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from elchat import report, runs
from elchat.errors import ElchatError
from elchat.report import compare, fertility
from elchat.report.facts import saved
from elchat.report.words import verdict
from scripts.arguments import Parser, tell


def main(argv: list[str] | None = None) -> int:
    """Write it and say where it is."""
    parser = Parser("report", "Escribe el informe de una ejecución, o compara varias.")
    parser.add_argument("runs", nargs="*")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--json", action="store_true", dest="as_json")
    arguments = parser.parse_args(argv)
    try:
        found = [runs.find(name) for name in arguments.runs or [None]]
        if len(found) == 1:
            return report_one(found[0], arguments.out, arguments.as_json)
        return compare_all(found, arguments.out, arguments.as_json)
    except ElchatError as error:
        return tell(error)


def report_one(run: runs.Run, out: Path | None, as_json: bool) -> int:
    """Renew a run's own report, or write its page elsewhere."""
    counts = fertility.measure(run)
    if out is None:
        facts = report.write(run, fertility=counts)
        path = run.path / report.HTML_FILE
    else:
        facts = report.gather(run, fertility=counts)
        path = report.write_page(out, report.sections.render(facts))
    judged = verdict(facts)
    if as_json:
        answer = {**saved(facts), "verdict": judged.judgement, "report": str(path)}
        print(json.dumps(answer, ensure_ascii=False, indent=2))
        return 0
    print("\n".join([judged.headline, *(f"  {point}" for point in judged.points), judged.advice]))
    for problem in facts.problems:
        print(f"Aviso: {problem}", file=sys.stderr)
    print(f"Informe: {path}")
    return 0


def compare_all(found: list[runs.Run], out: Path | None, as_json: bool) -> int:
    """Write the page that puts several runs side by side."""
    facts = [report.gather(run, fertility=fertility.measure(run)) for run in found]
    path = out or found[0].path / f"compare-{'-'.join(run.id for run in found[1:])}.html"
    path = report.write_page(path, compare.render(facts))
    if as_json:
        answer = {"runs": [saved(one) for one in facts], "differences": compare.differences(facts)}
        print(json.dumps({**answer, "report": str(path)}, ensure_ascii=False, indent=2))
        return 0
    print("\n".join(compare.summary(facts)))
    print(f"Comparación: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
