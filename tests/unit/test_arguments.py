"""What `python -m scripts.X` says of a bad command line, and its help: Spanish, code 2."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from scripts.arguments import USAGE_ERROR, Parser


def parser() -> Parser:
    made = Parser("prueba", "Prueba algo.")
    made.add_argument("file")
    made.add_argument("--seed", type=int)
    made.add_argument("--heat", type=float)
    made.add_argument("--kind", choices=["a", "b"])
    made.add_argument("--names", nargs="+")
    made.add_argument("--heats", type=float, nargs=2)
    either = made.add_mutually_exclusive_group()
    either.add_argument("--json", action="store_true")
    either.add_argument("--jsonl", action="store_true")
    return made


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "falta file."),
        (["f", "g"], "no se conoce g."),
        (["f", "--seed", "x"], "--seed vale 'x' y debe ser un entero."),
        (["f", "--heat", "x"], "--heat vale 'x' y debe ser un número."),
        (["f", "--seed"], "--seed necesita un valor."),
        (["f", "--names"], "--names necesita al menos un valor."),
        (["f", "--heats", "1"], "--heats necesita 2 valores."),
        (["f", "--json", "--jsonl"], "--jsonl no se puede usar con --json."),
        (["f", "--json=1"], "--json no lleva valor y se le dio '1'."),
        (["f", "--h", "1"], "--h puede ser --h"),
        (["f", "--kind", "c"], "--kind vale 'c' y debe ser uno de "),
    ],
)
def test_a_bad_command_line_is_one_spanish_sentence(words: list[str], said: str, capsys):
    with pytest.raises(SystemExit) as end:
        parser().parse_args(words)
    out, err = capsys.readouterr()
    assert end.value.code == USAGE_ERROR
    assert out == ""
    assert err.startswith(f"Error: {said}")
    assert err.splitlines()[1] == "  → Mira las opciones: python -m scripts.prueba --help"


def test_help_is_spanish(capsys):
    with pytest.raises(SystemExit) as end:
        parser().parse_args(["--help"])
    out = capsys.readouterr().out
    assert end.value.code == 0
    assert out.startswith("uso: python -m scripts.prueba ")
    assert "argumentos:" in out
    assert "opciones:" in out
    assert "muestra esta ayuda y termina" in out
    assert not any(word in out for word in ("usage", "options", "show this"))


def test_no_script_speaks_english():
    for path in (Path(__file__).parents[2] / "scripts").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and path.name != "arguments.py":
                assert ast.unparse(node.func) != "argparse.ArgumentParser", path
