"""The README tells the truth about commands, files and configurations."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from cli.cloud import quote
from elchat import bases, config

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = [
    line
    for block in re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
    for line in block.splitlines()
]
ROW = re.compile(r"^\| \[(\w+)\]\((configs/\S+?)\)[^|]*\| (\S+) \| ([^|]+) \|", re.MULTILINE)
ROWS = ROW.findall(README)


def test_ci_runs_the_readmes_test_command():
    [command] = [line for line in COMMANDS if "pytest" in line]
    assert command in (ROOT / ".ci" / "run").read_text().splitlines()


def test_the_first_command_names_a_configuration_that_exists():
    path = COMMANDS[0].rpartition("--config ")[2]
    assert config.load(ROOT / path).name == "demo"


def test_every_link_to_this_repository_leads_somewhere():
    links = re.findall(r"\]\(((?!http)[^)#]+)\)", README)
    assert len(links) > 10
    for link in links:
        assert (ROOT / link).exists(), link


@pytest.mark.parametrize(("name", "path", "base", "cost"), ROWS)
def test_the_table_agrees_with_the_configurations(name, path, base, cost):
    loaded = config.load(ROOT / path)
    assert loaded.name == name
    title = bases.get(loaded.model.base).title.replace(" ", "-")
    assert title == base
    dollars = float(re.search(r"[\d,]+", cost)[0].replace(",", "."))
    assert (loaded.compute.budget_usd or 0.0) == dollars


@pytest.mark.parametrize(("name", "path", "base", "cost"), ROWS)
def test_the_rented_hours_and_dollars_are_those_of_the_estimate(name, path, base, cost):
    """First offer at the dated prices of elchat.estimate, by the arithmetic that rents."""
    loaded = config.load(ROOT / path)
    [row] = [line for line in README.splitlines() if line.startswith(f"| [{name}](")]
    if loaded.compute.provider == "local":
        assert "| — |" in row
        return
    shape = bases.get(loaded.model.base).shape
    prices = quote.observed_prices(loaded.compute.cloud)
    budget = loaded.compute.budget_usd
    found = quote.offers(loaded, shape, prices, now=0.0, remaining_usd=budget)
    first = next(offer for offer in found if offer.problem is None)
    hours = f"{first.hours:.1f} h" if first.hours >= 1 else f"{60 * first.hours:.0f} min"
    expected = f"{first.name}: {hours}, ${first.usd:.2f}".replace(".", ",")
    assert f"| {expected} |" in row
    assert first.usd <= first.worst_usd <= budget + 1e-9


def test_the_table_has_them_all():
    files = {path.name for path in (ROOT / "configs").glob("*.yaml")}
    assert {Path(path).name for _, path, _, _ in ROWS} == files


def test_the_seed_corpus_is_as_large_as_promised():
    seed = ROOT / "datos" / "semilla"
    assert sum(path.stat().st_size for path in (seed / "cpt").rglob("*.txt")) >= 200_000
    files = (seed / "sft").glob("*.jsonl")
    assert sum(len(path.read_bytes().splitlines()) for path in files) >= 400
