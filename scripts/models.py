"""Base models on this machine: list, pull, verify, remove.

    python -m scripts.models list|pull|verify|remove [MODEL] [--start base|instruct] [--json]

What `elchat models` starts; the work is elchat.hub's.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict

from elchat import hub, model_store
from elchat.errors import ElchatError
from elchat.files import format_bytes
from scripts.arguments import Parser, tell


def main(argv: list[str] | None = None) -> int:
    """Run one of the four actions and return the exit code."""
    parser = Parser("models", "Lista, descarga, verifica y borra modelos de partida.")
    parser.add_argument("action", choices=["list", "pull", "verify", "remove"])
    parser.add_argument("model", nargs="?")
    parser.add_argument("--start", choices=["base", "instruct"], default="instruct")
    parser.add_argument("--json", action="store_true", dest="as_json")
    args = parser.parse_args(argv)
    if args.action != "list" and args.model is None:
        parser.error("falta el modelo")
    try:
        answer, text = ACTIONS[args.action](args.model, args.start)
    except ElchatError as error:
        return tell(error)
    except KeyboardInterrupt:
        print("\nInterrumpido: lo descargado a medias se descarta o se retoma.", file=sys.stderr)
        return 130
    if args.as_json:
        text = json.dumps(answer, ensure_ascii=False, indent=2, default=str)
    try:
        print(text, flush=True)
    except BrokenPipeError:  # the reader left, as in `elchat models | head`
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    return 0


def _note(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def list_models(model: str | None, start: str) -> tuple[object, str]:
    """Every known model and where it lies on this machine."""
    entries = model_store.list_models()
    rows = [["modelo", "versión", "parámetros", "licencia", "en esta máquina"]]
    for entry in entries:
        size = f"{entry.n_params / 1e6:.0f} M" if entry.n_params else "—"
        licence = entry.licence + (" (pide aceptarla)" if entry.is_gated else "")
        here = f"{format_bytes(entry.n_bytes)} ({entry.source})" if entry.path else "no"
        rows.append([entry.ref, entry.start, size, licence, here])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) for row in rows]
    return [asdict(entry) for entry in entries], "\n".join(line.rstrip() for line in lines)


def pull(model: str, start: str) -> tuple[object, str]:
    """Download a model, telling its progress."""
    path = hub.fetch_base(model, start, progress=_note)
    return {"model": model, "start": start, "path": str(path)}, f"«{model}» está en {path}"


def verify(model: str, start: str) -> tuple[object, str]:
    """Recompute every hash of a downloaded model."""
    folders = model_store.verify(model, start)
    answer = {"model": model, "start": start, "ok": True, "paths": [str(p) for p in folders]}
    return answer, f"«{model}» está entero: " + ", ".join(map(str, folders))


def remove(model: str, start: str) -> tuple[object, str]:
    """Delete a downloaded model."""
    freed = model_store.remove(model, start)
    answer = {"model": model, "start": start, "freed_bytes": freed}
    return answer, f"«{model}» borrado: {format_bytes(freed)} libres."


ACTIONS = {"list": list_models, "pull": pull, "verify": verify, "remove": remove}


if __name__ == "__main__":
    sys.exit(main())
