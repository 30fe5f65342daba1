"""A calculator the model can call: exact, small, and unable to run anything.

The call is text, as in GSM8K's annotations: the model writes `<<12*7=` and the engine completes
`84>>`; what it completes enters the context and is never a training target (`chat_format`).

    Cada caja pesa <<12*7=84>>84 kilos.

A comma is a decimal comma. A point is a decimal point, as in the training data and in the results,
unless it can only group thousands: 1.500,50 and 1.234.567. Results have ten significant digits.
"""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable
from decimal import Decimal, DivisionByZero, InvalidOperation, localcontext
from decimal import Overflow as DecimalOverflow

MAX_CHARS, MAX_NODES, MAX_DIGITS, MAX_EXPONENT = 120, 60, 40, 200
SIGNIFICANT_DIGITS = 10
FAILED = "error"
# The call is complete when the text ends in it.
CALL = re.compile(r"<<([^<>=\n]{1,%d})=$" % MAX_CHARS)  # noqa: UP031
# A whole call with its result, to tell what was not written by the model.
ANNOTATION = re.compile(r"(<<[^<>=\n]{1,%d}=)([^<>\n]{1,60}>>)" % MAX_CHARS)  # noqa: UP031
_GROUPED = re.compile(r"\d{1,3}(?:\.\d{3})+,\d+|\d{1,3}(?:\.\d{3}){2,}(?![\d.])|\d+,\d+")
_PERCENT = re.compile(r"(\d+(?:\.\d+)?)\s*%(?!\s*[\d(])")
_ALIKE = str.maketrans({"×": "*", "·": "*", "÷": "/", "−": "-", "–": "-", ":": "/", "^": "**"})

_BINARY: dict[type[ast.operator], Callable[[Decimal, Decimal], Decimal]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: lambda a, b: (a / b).to_integral_value("ROUND_FLOOR"),
    ast.Mod: lambda a, b: a - b * (a / b).to_integral_value("ROUND_FLOOR"),
}


class CalculatorError(Exception):
    """The expression is not arithmetic, or is too large."""


def pending_call(text: str) -> str | None:
    """The expression of a call that `text` ends with, or None."""
    found = CALL.search(text)
    return None if found is None else found.group(1)


def split_results(text: str) -> list[tuple[str, bool]]:
    """Cut an answer into what the model writes and, marked False, what calls completed.

    Example: "a <<1+1=2>>2" is [("a <<1+1=", True), ("2>>", False), ("2", True)].
    """
    parts, end = [], 0
    for found in ANNOTATION.finditer(text):
        parts += [(text[end : found.end(1)], True), (found.group(2), False)]
        end = found.end()
    return [(part, is_written) for part, is_written in [*parts, (text[end:], True)] if part]


def answer(expression: str) -> str:
    """What completes the call: the result, or "error", and the closing mark."""
    try:
        return f"{spell(evaluate(expression))}>>"
    except CalculatorError:
        return f"{FAILED}>>"


def evaluate(expression: str) -> Decimal:
    """The value of an arithmetic expression, in some 40 digits.

    Example: "(1.500,50 + 20%) * 2" is 3001.4.

    Raises:
        CalculatorError: anything but numbers, + - * / // % ** and parentheses, or too much of it.
    """
    if len(expression) > MAX_CHARS:
        raise CalculatorError("demasiado larga")
    text = expression.translate(_ALIKE).strip()
    text = _GROUPED.sub(lambda m: m.group().replace(".", "").replace(",", "."), text)
    text = _PERCENT.sub(r"(\1/100)", text)
    try:
        tree = ast.parse(text, mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise CalculatorError("no es una cuenta") from None
    if sum(1 for _ in ast.walk(tree)) > MAX_NODES:
        raise CalculatorError("demasiadas operaciones")
    with localcontext() as context:
        context.prec = MAX_DIGITS
        try:
            value = _value(tree.body, text)
        except (InvalidOperation, DivisionByZero, DecimalOverflow, RecursionError):
            raise CalculatorError("no tiene resultado") from None
    if not value.is_finite() or abs(value.adjusted()) > MAX_DIGITS:
        raise CalculatorError("demasiado grande")
    return value


def spell(value: Decimal) -> str:
    """Plain digits, without an exponent or trailing zeros. Example: 84.50 is "84.5"."""
    with localcontext() as context:
        context.prec = max(SIGNIFICANT_DIGITS, value.adjusted() + 1)
        rounded = +value
    text = f"{rounded:f}"
    text = text.rstrip("0").rstrip(".") if "." in text else text
    return "0" if text in ("-0", "") else text


def _value(node: ast.expr, text: str) -> Decimal:
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        return Decimal((ast.get_source_segment(text, node) or "").replace("_", ""))
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.UAdd | ast.USub):
        value = _value(node.operand, text)
        return -value if isinstance(node.op, ast.USub) else value
    if isinstance(node, ast.BinOp):
        left, right = _value(node.left, text), _value(node.right, text)
        if isinstance(node.op, ast.Pow):
            return _power(left, right)
        if type(node.op) in _BINARY:
            return _BINARY[type(node.op)](left, right)
    raise CalculatorError("no es una cuenta")


def _power(base: Decimal, exponent: Decimal) -> Decimal:
    if abs(exponent) > MAX_EXPONENT:
        raise CalculatorError("exponente demasiado grande")
    return base**exponent
