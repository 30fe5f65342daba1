"""Who may import whom: the table of DESIGN.md, enforced over every module."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
OURS = ("cli", "elchat", "scripts", "tasks")

# First match wins. Layer 5 composes everything; `cli` stands aside.
LAYERS: tuple[tuple[str, int], ...] = (
    ("elchat.web", 4),
    ("elchat.autonomy", 1),
    ("elchat.lab", 4),
    ("elchat.data", 2),
    ("elchat.training.loop", 3),
    ("elchat.training", 2),
    ("scripts", 5),
    ("tasks", 4),
    *((f"elchat.{name}", 0) for name in (
        "errors", "files", "paths", "model_config", "config", "runs", "bases", "hardware",
        "estimate", "forgetting", "plots", "checkpoint_files", "rental",
    )),
    *((f"elchat.{name}", 1) for name in (
        "tokenizer", "chat_format", "attention", "gpt", "hooks", "philox", "reply_text",
        "native", "tools",
    )),
    *((f"elchat.{name}", 2) for name in (
        "weights", "vocabulary", "gguf_reader", "hub", "model_store", "checkpoint", "sampling",
        "quantize", "packed_linear", "panels", "runner", "batch_hook", "slots",
    )),
    ("elchat.engine", 3),
    *((f"elchat.{name}", 4) for name in (
        "evaluation", "report", "export", "scheduler", "lm_eval_adapter", "reply", "terminal",
    )),
)  # fmt: skip
LAYER_0_THIRD_PARTY = {"pydantic", "yaml"}
CLI_THIRD_PARTY = {"typer", "rich", "httpx", "pydantic", "yaml"}
CLI_OPTIONAL = {"cli.dashboard": {"textual"}}  # extras, in the one module that draws with them


def layer_of(module: str) -> int:
    if module == "elchat":
        return 0
    for name, layer in LAYERS:
        if module == name or module.startswith(name + "."):
            return layer
    pytest.fail(f"{module} no está en la tabla de capas: añádelo a LAYERS (y a DESIGN.md)")


def modules() -> dict[str, Path]:
    found = {}
    for package in OURS:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = list(path.relative_to(ROOT).with_suffix("").parts)
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def imports(tree: ast.AST, module: str, is_package: bool) -> Iterator[str]:
    """Absolute names a module imports anywhere in it, type-checking blocks left out."""
    skipped = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if node in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = module.split(".")
                keep = len(parts) - node.level + (1 if is_package else 0)
                base = ".".join([*parts[:keep], *([base] if base else [])])
            for alias in node.names:
                full = f"{base}.{alias.name}"
                yield full if full in MODULES else base


def violations(module: str, imported: str) -> str | None:
    """Why `module` may not import `imported`, or None."""
    if module.startswith("cli.pod"):  # runs in the rented machine, before anything is installed
        allowed = set(sys.stdlib_module_names) | {"pip"}
        if module == "cli.pod.smoke":
            allowed.add("torch")
        root = imported.split(".")[0]
        return None if root in allowed else f"en la máquina alquilada no hay {root}"
    root = imported.split(".")[0]
    is_cli = module.split(".")[0] == "cli"
    if root not in OURS:
        if root in sys.stdlib_module_names:
            return None
        if is_cli:
            allowed = CLI_THIRD_PARTY | CLI_OPTIONAL.get(module, set())
            return None if root in allowed else f"cli no usa {root}"
        is_base = layer_of(module) == 0
        return f"la capa 0 no usa {root}" if is_base and root not in LAYER_0_THIRD_PARTY else None
    if is_cli:
        is_allowed = root == "cli" or (root == "elchat" and layer_of(imported) == 0)
        return None if is_allowed else "cli solo importa la capa 0"
    if root == "cli":
        return "nadie importa cli"
    if root == "scripts":
        return None if module.startswith("scripts") else "nadie importa scripts"
    return _between_layers(module, imported)


def _between_layers(module: str, imported: str) -> str | None:
    mine, theirs = layer_of(module), layer_of(imported)
    if module.startswith("tasks") and not imported.startswith("tasks") and theirs > 1:
        return "tasks solo importa las capas 0 y 1"
    if module.startswith("tasks.") and imported.startswith("tasks."):
        return None if imported == "tasks.common" else "las tareas no se importan entre sí"
    if theirs > mine:
        return f"la capa {mine} no importa la {theirs}"
    if mine == 3 and theirs == 3 and module != imported:
        return "training.loop y engine no se importan"
    pair = {_family(module), _family(imported)}
    if pair == {"elchat.gpt", "elchat.autonomy"}:
        return "gpt y autonomy solo comparten la configuración"
    return None


def _family(module: str) -> str:
    return "elchat.autonomy" if module.startswith("elchat.autonomy") else module


@pytest.mark.parametrize("module", MODULES)
def test_imports_respect_the_layers(module: str):
    path = MODULES[module]
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = set(imports(tree, module, path.name == "__init__.py"))
    broken = {name: why for name in sorted(names) if (why := violations(module, name))}
    assert broken == {}


@pytest.mark.parametrize(
    ("module", "imported"),
    [
        ("cli.main", "torch"),
        ("cli.main", "elchat.gpt"),
        ("cli.commands.chat", "scripts.chat_cli"),
        ("elchat.config", "numpy"),
        ("elchat.gpt", "elchat.weights"),
        ("elchat.data.packing", "elchat.training.loop"),
        ("elchat.training.loop", "elchat.engine"),
        ("elchat.engine", "elchat.training.loop"),
        ("elchat.engine", "elchat.evaluation"),
        ("elchat.gpt", "elchat.autonomy.noise"),
        ("elchat.report", "scripts.run"),
        ("elchat.runs", "cli.views"),
        ("tasks.mmlu", "elchat.engine"),
        ("tasks.mmlu", "tasks.arc"),
    ],
)
def test_the_rules_refuse_what_they_should(module: str, imported: str):
    assert violations(module, imported)


@pytest.mark.parametrize(
    ("module", "imported"),
    [
        ("cli.main", "typer"),
        ("cli.views", "elchat.runs"),
        ("elchat.weights", "elchat.gpt"),
        ("elchat.weights", "torch"),
        ("elchat.training.loop", "elchat.training.optim"),
        ("elchat.evaluation", "elchat.engine"),
        ("scripts.run", "elchat.web.app"),
        ("scripts.run", "scripts.stages"),
        ("tasks.mmlu", "tasks.common"),
        ("tasks.mmlu", "elchat.chat_format"),
    ],
)
def test_the_rules_allow_what_they_should(module: str, imported: str):
    assert violations(module, imported) is None


def test_relative_and_nested_imports_are_seen():
    source = "def f():\n    from .engine import x\n    import torch.nn\n"
    assert set(imports(ast.parse(source), "elchat.report", False)) == {"elchat.engine", "torch.nn"}
