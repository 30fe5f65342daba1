from __future__ import annotations

import time

import pytest

from elchat.tools.calculator import answer, pending_call, split_results
from tests import toys


@pytest.mark.parametrize(
    ("expression", "result"),
    [
        ("12*7", "84"),
        ("1.500,50*2", "3001"),
        ("1.234.567+1", "1234568"),
        ("3,5 + 0,5", "4"),
        ("1.234*2", "2.468"),
        ("(1.500,50 + 20%) * 2", "3001.4"),
        ("50% * 30", "15"),
        ("10 % 3", "1"),
        ("-7 // 2", "-4"),
        ("2^10", "1024"),
        ("3 × 4 ÷ 2", "6"),
        ("1/3", "0.3333333333"),
        ("0.1+0.2", "0.3"),
        ("-5-3", "-8"),
        ("1e3", "1000"),
        ("5-5", "0"),
    ],
)
def test_accounts(expression, result):
    assert answer(expression) == f"{result}>>"


@pytest.mark.parametrize(
    "expression",
    [
        "__import__('os').system('true')",
        "().__class__",
        "open('/etc/passwd')",
        "x + 1",
        "1/0",
        "0**-1",
        "9**9**9",
        "9**9**9**9",
        "(-8)**0.5",
        "2**1000",
        "1e999999",
        "1 if 1 else 2",
        "[1][0]",
        "'a'*3",
        "True + 1",
        "1j*2",
        "1 +",
        "",
        "9" * 200,
        "(" * 110 + "1",
        "1" + "+1" * 59,
        "1;2",
        "1\\n2",
        "lambda: 1",
        "1 < 2",
    ],
)
def test_what_is_no_small_account_is_an_error_and_quick(expression):
    start = time.perf_counter()
    assert answer(expression) == "error>>"
    assert time.perf_counter() - start < 0.5


def test_a_call_is_seen_only_when_it_is_complete():
    assert pending_call("pesa <<12*7=") == "12*7"
    assert pending_call("pesa <<12*7") is None
    assert pending_call("pesa <<12*7=8") is None
    assert pending_call("a = b =") is None
    assert pending_call("<<a>>=") is None


def test_results_are_told_from_what_the_model_writes():
    text = "Son <<1+1=2>>2 y <<2*3=6>>6."
    parts = split_results(text)
    assert "".join(part for part, _ in parts) == text
    assert [part for part, is_written in parts if not is_written] == ["2>>", "6>>"]
    assert split_results("sin cuentas") == [("sin cuentas", True)]
    assert split_results("") == []


@pytest.mark.parametrize("family", toys.FAMILIES)
def test_results_are_context_and_never_a_target(family):
    chat = toys.loaded(family).chat
    turns = [{"role": "user", "content": "¿1+1?"}, {"role": "assistant", "content": "<<1+1=2>>2"}]
    rendered = chat.render(turns)
    trained = [i for i, t in zip(rendered.ids, rendered.is_target, strict=True) if t]
    encode = chat.tokenizer.encode
    assert trained == [*encode("<<1+1="), *encode("2"), chat.stop_ids[0]]
    assert "<<1+1=2>>2" in chat.tokenizer.decode(rendered.ids)
