"""Mistakes on a script's command line are told in Spanish."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from scripts.arguments import Parser

SCRIPTS = Path(__file__).parents[2] / "scripts"


def parser() -> Parser:
    made = Parser(prog="python -m scripts.algo")
    made.add_argument("model")
    made.add_argument("--seed", type=int)
    made.add_argument("--temperature", type=float)
    made.add_argument("--weights", choices=("int8", "int4"))
    made.add_argument("--pair", nargs=2)
    made.add_argument("--json", action="store_true")
    one = made.add_mutually_exclusive_group()
    one.add_argument("--alone", action="store_true")
    one.add_argument("--beside", action="store_true")
    return made


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        ([], "falta: model"),
        (["m", "--seed"], "falta el valor de --seed"),
        (["m", "--seed", "x"], "--seed debe ser un número entero, y vale 'x'"),
        (["m", "--temperature", "x"], "--temperature debe ser un número, y vale 'x'"),
        (["m", "--weights", "int2"], "--weights vale 'int2'; puede ser 'int8', 'int4'"),
        (["m", "--pair", "1"], "--pair pide 2 valores"),
        (["m", "--json=1"], "--json no lleva valor, y se le da '1'"),
        (["m", "--alone", "--beside"], "--beside y --alone no van juntos"),
        (["m", "--otra"], "no se reconoce: --otra"),
    ],
)
def test_a_mistake_is_one_spanish_sentence(argv, expected, capsys):
    with pytest.raises(SystemExit) as end:
        parser().parse_args(argv)
    assert end.value.code == 2
    out = capsys.readouterr()
    assert out.out == ""
    assert out.err == f"Error: {expected}. Mira: python -m scripts.algo --help\n"


def test_no_script_speaks_english():
    for path in SCRIPTS.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and path.name != "arguments.py":
                assert ast.unparse(node.func) != "argparse.ArgumentParser", path
