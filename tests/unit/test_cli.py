"""The command line: help, mistakes, plans. Runs themselves are in tests/e2e/test_cli_runs.py."""

from __future__ import annotations

import importlib
import inspect
import json
import os
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest
import typer.main

import cli.main
from cli import output, preflight
from cli.local_provider import LocalProvider
from cli.main import COMMANDS, main
from cli.providers import get_provider
from cli.spanish import translate_error, translate_help
from elchat import paths, runs
from elchat.errors import AuthError, ConfigError
from elchat.runs import Status

GOLDEN = Path(__file__).parents[1] / "golden"
GROUPS = {
    "models": ("list", "pull", "verify", "remove"),
    "config": ("show", "check", "schema"),
    "autonomy": ("ablate", "cost", "train", "evaluate", "abstain", "diversity", "card"),
    "data": ("inspect", "mask", "prepare"),
}
PAGES = [
    (),
    *((name,) for name in COMMANDS),
    *((group, name) for group, names in GROUPS.items() for name in names),
]
ENGLISH = re.compile(
    r"\b(Usage|Options|Commands|Arguments|Show this|default:|required|Error:? No such|COMMAND)\b"
)


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.delenv("RUNPOD_API_KEY", raising=False)
    monkeypatch.delenv("ELCHAT_DEBUG", raising=False)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    (tmp_path / "textos").mkdir()
    (tmp_path / "textos" / "uno.txt").write_text("Un texto.", encoding="utf-8")
    path = tmp_path / "prueba.yaml"
    path.write_text(
        "name: prueba\nmodel: {base: smollm2-135m}\n"
        "data: {cpt: [{path: textos}]}\n"
        "training: {cpt: {context_tokens: 512, batch_tokens: 1024}, sft: {enabled: false}}\n",
        encoding="utf-8",
    )
    return path


def no_runs() -> bool:
    return not paths.runs_dir().exists()


# --- help ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", PAGES, ids=lambda words: "-".join(("elchat", *words)))
def test_help_is_the_recorded_one(words: tuple[str, ...], capsys):
    """Rewrite with ELCHAT_UPDATE_GOLDEN=1 and read the difference."""
    assert main([*words, "--help"]) == 0
    page = capsys.readouterr().out
    path = GOLDEN / f"{'-'.join(('help', *words))}.txt"
    if os.environ.get("ELCHAT_UPDATE_GOLDEN"):
        path.write_text(page, encoding="utf-8")
    assert page == path.read_text(encoding="utf-8")
    assert not ENGLISH.search(page)


def test_the_list_of_commands_says_what_each_says_of_itself():
    for name, line in COMMANDS.items():
        module = importlib.import_module(f"cli.commands.{name}")
        command = typer.main.get_command(module.app)
        assert (command.help or "").splitlines()[0] == line


def test_every_command_module_is_listed():
    files = {path.stem for path in Path(inspect.getfile(cli.main)).parent.glob("commands/*.py")}
    assert files - {"__init__"} == set(COMMANDS)


def test_no_words_at_all_shows_the_help(capsys):
    assert main([]) == 0
    assert capsys.readouterr().out.startswith("Uso: elchat")


def test_version(capsys):
    assert main(["--version"]) == 0
    assert re.fullmatch(r"elchat \d+\.\d+\.\d+\n", capsys.readouterr().out)


def test_help_loads_nothing_heavy():
    code = (
        "import sys; from cli.main import main; main(['--help']);"
        "heavy = {'torch', 'numpy', 'pydantic', 'httpx', 'yaml', 'rich.console', 'pyarrow'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.splitlines()[-1] == "[]", result.stderr


def test_no_command_module_imports_torch():
    modules = ", ".join(f"cli.commands.{name}" for name in COMMANDS)
    helpers = "cli.preflight, cli.follow, cli.views, cli.checks, cli.local_provider"
    code = f"import sys, {modules}, {helpers}; print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.strip() == "False", result.stderr


def test_help_is_quick():
    """The bar is 0.3 s for the wall clock; processor time is what noise does not move."""
    seconds = [cpu_seconds([sys.executable, "-m", "cli.main", "--help"]) for _ in range(5)]
    assert statistics.median(seconds) < 0.3


def cpu_seconds(argv: list[str]) -> float:
    before = os.times()
    subprocess.run(argv, stdout=subprocess.DEVNULL, check=True)
    after = os.times()
    return (after.children_user + after.children_system) - (
        before.children_user + before.children_system
    )


# --- mistakes in the words -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["trian"], "No existe la orden «trian»; ¿quisiste decir train?"),
        (["inventada"], "No existe la orden «inventada»."),
        (["train", "--confg", "x"], "No existe la opción «--confg»; ¿quisiste decir"),
        (["train", "--config"], "La opción «--config» necesita un valor."),
        (["logs", "-n", "dos"], "debe ser un número entero"),
        (["logs", "-n", "-3"], "debe ser 0 o más"),
        (["status", "una", "dos"], "Sobran argumentos: dos."),
        (["config"], "Falta la orden."),
        (["models", "pull"], "Falta el argumento «MODELO»."),
        (["models", "pull", "x", "--start", "otra"], "solo admite"),
        (["train", "--json=si"], "no lleva ningún valor"),
    ],
)
def test_usage_mistakes_are_in_spanish(words: list[str], message: str, capsys):
    assert main(words) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert "--help" in captured.err
    assert not captured.out
    assert not ENGLISH.search(captured.err)


def test_an_unknown_english_message_passes_unchanged():
    assert translate_error("Something new.") == "Something new."
    assert translate_help("Usage: x\n\nOptions:\n") == "Uso: x\n\nOpciones:\n"


# --- mistakes in the configuration ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--set", "training.sed=3"], "¿quisiste decir «training.seed»?"),
        (["--set", "training.seed"], "espera clave=valor"),
        (["--set", "model.base=smolm2-135m"], "¿quisiste decir «smollm2-135m»?"),
        (["--set", "training.cpt.context_tokens=16384", "--set",
          "training.cpt.batch_tokens=16384"], "admite 8192 como mucho"),
        (["--set", "compute.gpus=[NVIDIA H20]"], "¿quisiste decir «NVIDIA H200»?"),
        (["--provider", "nube"], "solo admite"),
        (["--name", "Con Espacios"], "no vale"),
    ],
)  # fmt: skip
def test_train_refuses_before_making_a_folder(words, message, config: Path, capsys):
    assert main(["train", "-c", str(config), *words]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert "Traceback" not in captured.err
    assert no_runs()


def test_a_missing_configuration_is_named(capsys):
    assert main(["train", "-c", "no/esta.yaml"]) == 2
    assert "No existe la configuración no/esta.yaml" in capsys.readouterr().err


def test_missing_texts_are_named(config: Path, capsys):
    (config.parent / "textos" / "uno.txt").unlink()
    assert main(["train", "-c", str(config)]) == 3
    assert "data.cpt.0.path" in capsys.readouterr().err
    assert no_runs()


def test_bad_yaml_says_where(config: Path, capsys):
    config.write_text("name: prueba\nmodel: [\n", encoding="utf-8")
    assert main(["config", "check", str(config)]) == 2
    assert re.search(r"no es YAML válido \(línea 3", capsys.readouterr().err)


@pytest.mark.parametrize("command", ["status", "logs", "stop", "resume", "chat"])
def test_an_unknown_run_is_named(command: str, capsys):
    assert main([command, "fantasma"]) == 2
    assert "No hay ninguna ejecución llamada «fantasma»" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["status", "logs", "stop", "resume"])
def test_no_runs_yet(command: str, capsys):
    assert main([command]) == 2
    assert "elchat train" in capsys.readouterr().err


def test_chat_without_a_model_says_how_to_get_one(config: Path, capsys):
    assert main(["chat"]) == 2
    assert "training_demo.yaml" in capsys.readouterr().err
    runs.create(preflight.load_config(config, []), provider="local", name="a-medias")
    assert main(["chat", "a-medias"]) == 2
    assert "no tiene todavía un modelo" in capsys.readouterr().err


# --- cloud ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [[], ["--config", "configs/training_llama.yaml"]])
def test_a_cloud_configuration_without_a_key_names_both_ways_forward(words, capsys):
    assert main(["train", *words]) == 2
    error = capsys.readouterr().err
    assert "export RUNPOD_API_KEY=" in error
    assert "elchat train --config configs/training_demo.yaml" in error
    assert "configs/training_local.yaml" in error
    assert no_runs()


def test_with_a_key_and_no_network_nothing_is_rented(monkeypatch, capsys):
    monkeypatch.setenv("RUNPOD_API_KEY", "rpa_secreta")
    monkeypatch.setenv("ELCHAT_RUNPOD_API_URL", "http://127.0.0.1:9")
    monkeypatch.setattr("cli.runpod_client.READ_RETRIES", 1)
    assert main(["train"]) == 8
    captured = capsys.readouterr()
    assert "no se ha alquilado nada" in captured.err
    assert "rpa_secreta" not in captured.err + captured.out
    assert no_runs()


def test_providers_by_name(monkeypatch):
    assert isinstance(get_provider("local"), LocalProvider)
    rented = get_provider("runpod")
    for key in (None, " ", "x", "clave con espacios"):
        monkeypatch.setenv("RUNPOD_API_KEY", key) if key else monkeypatch.delenv(
            "RUNPOD_API_KEY", raising=False
        )
        with pytest.raises(AuthError):
            _ = rented.client  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match="nube"):
        get_provider("nube")


def test_a_run_whose_worker_never_started_is_dead(config: Path):
    from dataclasses import replace

    run = runs.create(preflight.load_config(config, []), provider="local", name="nonata")
    place = LocalProvider()
    assert place.status(run)[0] == "pending"  # just made: its worker may be about to start
    assert place.status(replace(run, created=run.created - 60))[0] == "dead"


# --- plans ---------------------------------------------------------------------------------------


def test_a_dry_run_shows_the_plan_and_touches_nothing(config: Path, capsys):
    assert main(["train", "-c", str(config), "--dry-run", "--name", "plan"]) == 0
    plan = capsys.readouterr().out
    assert str(paths.runs_dir() / "plan") in plan
    assert re.search(r"cpt +.*textos +1 +9 B", plan)
    assert "135 M de parámetros" in plan
    assert "0 $" in plan
    assert "learning_rate: 0.0001" in plan
    assert not paths.home().exists()


def test_a_dry_run_of_a_cloud_configuration_needs_no_key(capsys):
    assert main(["train", "--dry-run", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["config"]["name"] == "10usd"
    assert plan["n_params"] == 494_032_768
    assert {offer["cloud"] for offer in plan["offers"]} == {"secure", "community"}
    assert all(offer["usd"] <= 10 for offer in plan["offers"])
    assert no_runs()


def test_provider_overrides_the_configuration(capsys):
    words = ["train", "--config", "demo", "--dry-run", "--json", "--set", "training.seed=77"]
    assert main([*words, "--provider", "local"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["config"]["compute"]["provider"] == "local"
    assert plan["config"]["training"]["seed"] == 77
    assert plan["local"]["memory_bytes"] > 1e9


def test_estimate_shows_prices_as_dated_observations(capsys):
    assert main(["estimate", "--config", "quality", "--quick"]) == 0
    text = capsys.readouterr().out
    assert "Precios observados en 2026-11" in text
    assert "H100 SXM" in text
    assert "límite 25,00 $" in text


def test_config_show_prints_what_was_resolved(config: Path, capsys):
    assert main(["config", "show", str(config), "--json", "-s", "training.seed=5"]) == 0
    assert json.loads(capsys.readouterr().out)["training"]["seed"] == 5
    assert main(["config", "show", str(config)]) == 0
    assert "stochastic_depth: 0.0" in capsys.readouterr().out
    assert main(["config", "schema"]) == 0
    assert json.loads(capsys.readouterr().out)["title"] == "Config"


def test_a_short_name_finds_the_shipped_configuration(monkeypatch, tmp_path: Path, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["config", "check", "demo"]) == 0
    assert "«demo» es correcta" in capsys.readouterr().out
    assert main(["config", "check", "configs/training_demo.yaml"]) == 0


def test_models_take_hub_ids_and_folders(tmp_path: Path):
    assert preflight.model_shape("Qwen/Qwen2.5-0.5B") == preflight.model_shape("qwen2.5-0.5b")
    assert preflight.model_shape("BSC-LT/salamandra-2b") is None
    assert preflight.model_shape(str(tmp_path)) is None
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ConfigError, match=r"config\.json no se puede leer"):
        preflight.model_shape(str(tmp_path))


# --- doctor, failures of ours --------------------------------------------------------------------


def test_doctor_lists_what_matters(monkeypatch, capsys):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("RUNPOD_API_KEY", "rpa_secreta")
    monkeypatch.setenv("ELCHAT_RUNPOD_API_URL", "http://127.0.0.1:9")
    monkeypatch.setattr("cli.runpod_client.READ_RETRIES", 1)
    started = time.monotonic()
    assert main(["doctor", "--json"]) == 0
    assert time.monotonic() - started < 5
    found = {item["name"]: item for item in json.loads(capsys.readouterr().out)}
    assert {"Python", "PyTorch", "disco", "memoria", "CPU", "hub", "tokenizador"} <= set(found)
    assert found["PyTorch"]["text"].startswith("2.13.0")
    assert found["hub"]["level"] == "warning"
    assert "puesta" in found["RUNPOD_API_KEY"]["text"]
    assert "secreta" not in str(found)


def test_doctor_fails_without_torch(monkeypatch, capsys):
    from importlib import metadata

    real = metadata.version

    def version(name: str) -> str:
        if name == "torch":
            raise metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr("cli.checks.metadata.version", version)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert main(["doctor"]) == 1
    assert re.search(r"FALLA +PyTorch +no está instalado", capsys.readouterr().out)


def test_a_bug_of_ours_is_one_sentence_and_a_file(monkeypatch, capsys):
    def broken(path, overrides, provider=None):
        raise RuntimeError("algo imposible")

    monkeypatch.setattr(preflight, "load_config", broken)
    assert main(["config", "show"]) == 70
    error = capsys.readouterr().err
    assert "RuntimeError: algo imposible" in error
    assert "Traceback" not in error
    (kept,) = (paths.home() / "errores").iterdir()
    assert str(kept) in error
    assert "in broken" in kept.read_text()


@pytest.mark.parametrize("as_variable", [True, False])
def test_debug_shows_the_traceback(as_variable: bool, monkeypatch, capsys):
    if as_variable:
        monkeypatch.setenv("ELCHAT_DEBUG", "1")
    words = ["status", "fantasma"] + ([] if as_variable else ["--debug"])
    assert main(words) == 2
    assert "Traceback" in capsys.readouterr().err


def test_ctrl_c_before_anything_starts(monkeypatch, capsys):
    def interrupted(path, overrides, provider=None):
        raise KeyboardInterrupt

    monkeypatch.setattr(preflight, "load_config", interrupted)
    assert main(["config", "show"]) == 130
    assert capsys.readouterr().err == "\nInterrumpido.\n"


# --- words and numbers ---------------------------------------------------------------------------


def test_spanish_numbers():
    assert output.number(1234567.891, 2) == "1\u00a0234\u00a0567,89"
    assert output.number(None) == output.number(float("nan")) == "—"
    assert output.dollars(9.5) == "9,50 $"
    assert output.percent(0.241) == "24 %"
    assert [output.count(n) for n in (1.06e9, 94e6, 74_000, 12)] == [
        "1,06 G", "94 M", "74 k", "12",
    ]  # fmt: skip
    assert [output.duration(s) for s in (5, 200, 7500, None)] == [
        "5 s", "3 min 20 s", "2 h 05 min", "—",
    ]  # fmt: skip


def test_states_and_stages_all_have_a_name():
    import typing

    assert set(output.STATES) == set(typing.get_args(runs.State))
    assert list(output.STAGES) == list(runs.STAGES)


def test_a_line_of_progress_leaves_out_what_is_not_known():
    from cli.views import progress_line

    assert progress_line(Status(stage="data")) == "datos (1/6)"
    full = Status(
        stage="cpt", step=12, total_steps=72, loss=2.345, bits_per_byte=1.69,
        tokens_per_s=310.2, mfu=0.24, eta_s=200, usd_spent=1.5,
    )  # fmt: skip
    assert progress_line(full) == (
        "preentrenamiento (2/6) · paso 12/72 · pérdida 2,345 · 1,690 bits/byte · 310 tokens/s · "
        "MFU 24 % · faltan 3 min 20 s · 1,50 $"
    )


def test_models_runs_the_script_with_the_same_words(monkeypatch):
    seen: list[tuple[str, ...]] = []

    def fake(module: str, *args: str) -> int:
        seen.append((module, *args))
        return 4

    monkeypatch.setattr("cli.processes.run_script", fake)
    assert main(["models", "pull", "smollm2-135m", "--start", "base", "--json"]) == 4
    assert seen == [("scripts.models", "pull", "smollm2-135m", "--start", "base", "--json")]


def test_models_alone_lists_them(monkeypatch):
    seen: list[tuple[str, ...]] = []
    monkeypatch.setattr("cli.processes.run_script", lambda *words: seen.append(words) or 0)
    assert main(["models"]) == 0
    assert seen == [("scripts.models", "list")]


def test_chat_starts_the_script_on_the_newest_model(config: Path, monkeypatch):
    seen: list[tuple[str, ...]] = []
    monkeypatch.setattr("cli.processes.run_script", lambda *words: seen.append(words) or 0)
    run = runs.create(preflight.load_config(config, []), provider="local", name="lista")
    run.model_path.mkdir()
    runs.create(preflight.load_config(config, []), provider="local", name="sin-modelo")
    assert main(["chat", "--seed", "7", "--system", "-breve"]) == 0
    assert main(["chat", str(run.path)]) == 0
    script, model = "scripts.chat_cli", str(run.model_path)
    assert seen == [(script, model, "--seed=7", "--system=-breve"), (script, model)]


def test_models_list_really_runs():
    result = subprocess.run(
        [sys.executable, "-m", "cli.main", "models", "list", "--json"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.returncode == 0, result.stderr
    assert any(item["ref"] == "smollm2-135m" for item in json.loads(result.stdout))


@pytest.mark.parametrize("target", ["carpeta/que/no/hay", "no_hay.gguf"])
def test_a_path_that_is_not_there_is_not_called_a_run(target, tmp_path, monkeypatch):
    from cli.commands.chat import resolve
    from elchat.errors import RunError

    monkeypatch.setenv("ELCHAT_HOME", str(tmp_path))
    with pytest.raises(RunError, match=f"No existe {target}: da una carpeta"):
        resolve(target)
