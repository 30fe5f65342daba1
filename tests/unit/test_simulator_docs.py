"""docs/simulador.md says every key of a fault script, and its examples work."""

from __future__ import annotations

import json
import re
from pathlib import Path

from elchat_sim import FaultScript, parse
from elchat_sim.faults import all_keys

PAGE = (Path(__file__).parents[2] / "docs" / "simulador.md").read_text(encoding="utf-8")


def test_every_key_is_documented():
    assert [key for key in all_keys() if f"`{key}`" not in PAGE] == []


def test_the_example_is_a_script():
    [example] = re.findall(r"```json\n(.*?)```", PAGE, re.DOTALL)
    assert parse(json.loads(example)) != FaultScript()
