"""Each thing that goes wrong is one Spanish sentence: what, what it cost, what to type next."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from cli.cloud import care, finish, record, remote
from cli.main import main
from cli.pod import guard
from cli.runpod_client import RunpodClient
from cli.runpod_provider import RunpodProvider
from elchat import errors, paths, runs
from elchat.files import read_json
from elchat_sim.faults import FaultScript
from tests.cloud_world import CloudWorld, parsed

KEY = "rpa_CLAVE.de-la-cuenta_0123456789"


@pytest.fixture(autouse=True)
def _account(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUNPOD_API_KEY", KEY)
    monkeypatch.setenv("ELCHAT_RUNPOD_API_URL", "http://127.0.0.1:9")  # never the real one
    monkeypatch.setattr("cli.cloud.strays.renew_in_background", lambda now: None)
    monkeypatch.setattr(care, "TICK_S", 120.0)
    monkeypatch.setattr(guard, "TICK_S", 45.0)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    folder = tmp_path / "textos"
    folder.mkdir()
    (folder / "uno.txt").write_text("Un texto.", encoding="utf-8")
    path = tmp_path / "nube.yaml"
    text = yaml.safe_dump(parsed(folder, expected_hours=0.4, budget_usd=2).model_dump(mode="json"))
    path.write_text(text, encoding="utf-8")
    return path


class Cloud:
    """A world, and `elchat` in it."""

    def __init__(self, capsys: pytest.CaptureFixture[str], script: dict[str, Any]) -> None:
        account = {"key": KEY, **script.pop("account", {})}
        self.world = CloudWorld(FaultScript.model_validate({"account": account, **script}))
        self.capsys = capsys

    def elchat(self, *words: str, key: str = KEY) -> tuple[int, str, str]:
        def provider() -> RunpodProvider:
            return self.world.provider(key=key)

        code = main(list(words), providers={"runpod": provider})
        captured = self.capsys.readouterr()
        for text in (captured.out, captured.err):
            assert "Traceback" not in text
            assert KEY not in text
        return code, captured.out, captured.err


@pytest.fixture
def cloud(capsys) -> Callable[..., Cloud]:
    return lambda **script: Cloud(capsys, script)


def sentences(err: str) -> tuple[str, str]:
    """(the one sentence of the error, the hint)."""
    lines = err.splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith("Error: "))
    return lines[at], "\n".join(lines[at + 1 :])


def test_a_wrong_key(cloud, config):
    code, _, err = cloud().elchat("train", "-c", str(config), "--yes", key="rpa_otra_clave_0")
    error, hint = sentences(err)
    assert code == errors.AuthError.exit_code == 2
    assert "rechaza la clave RUNPOD_API_KEY" in error
    assert "no ha costado nada" in error
    assert "export RUNPOD_API_KEY" in hint
    assert not paths.runs_dir().exists()


def test_an_empty_balance(cloud, config):
    code, _, err = cloud(account={"balance_usd": 0.0}).elchat("train", "-c", str(config), "--yes")
    error, hint = sentences(err)
    assert code == errors.BalanceError.exit_code == 12
    assert "no tiene saldo" in error
    assert "no ha costado nada" in error
    assert "Billing" in hint


def test_a_balance_that_rents_nothing(cloud, config):
    """The limit would be enough; what is missing is in the account."""
    code, _, err = cloud(account={"balance_usd": 0.05}).elchat("train", "-c", str(config), "--yes")
    error, hint = sentences(err)
    assert code == 12
    assert "El saldo de la cuenta (0,05 $) no alcanza" in error
    assert "no se ha alquilado nada" in error
    assert "Billing" in hint


def test_a_limit_that_rents_nothing(cloud, config):
    code, _, err = cloud().elchat(
        "train", "-c", str(config), "--yes", "--set", "compute.budget_usd=0.05"
    )
    error, hint = sentences(err)
    assert code == errors.BudgetError.exit_code == 10
    assert "Con 0,05 $ no se puede alquilar" in error
    assert "compute.budget_usd" in hint


def test_machines_that_never_come_to_train(cloud, config):
    there = cloud(lifecycle={"is_gpu_healthy": False})
    code, _, err = there.elchat("train", "-c", str(config), "--yes", "--name", "tres")
    error, hint = sentences(err)
    assert code == 9
    assert "Se han devuelto 3 máquinas seguidas" in error
    assert "la GPU calcula mal: RTX 4090 (segura y comunidad), RTX 5090 (segura)" in error
    assert "Lleva gastados" in error
    assert "elchat resume tres" in hint
    assert there.world.sim.live_pods() == []


def test_a_balance_refused_at_the_counter(cloud, config):
    there = cloud(create=[{"kind": "balance"}])
    code, _, err = there.elchat("train", "-c", str(config), "--yes", "--name", "pobre")
    error, hint = sentences(err)
    assert code == 12
    assert "no alcanza para alquilar (insufficient balance)" in error
    assert "Lleva gastados 0,00 $ de 2,00 $" in error
    assert "elchat resume pobre" in hint
    assert there.world.usd() == 0.0


def test_no_capacity_anywhere(cloud, config):
    there = cloud(create=[{"kind": "capacity"}])
    code, _, err = there.elchat("train", "-c", str(config), "--yes", "--name", "lleno")
    error, hint = sentences(err)
    assert code == errors.NoCapacityError.exit_code == 11
    assert "Ninguna de las GPU admitidas se puede alquilar ahora (sin máquinas libres: " in error
    assert "RTX 4090 (segura y comunidad), RTX 5090" in error
    assert "Lleva gastados 0,00 $" in error
    assert "--wait-capacity 2h" in hint
    code, out, _ = there.elchat("status", "lleno")
    assert code == 0
    assert "elchat resume lleno" in out


def test_capacity_can_be_waited_for(cloud, config):
    there = cloud(create=[{"kind": "capacity", "calls": list(range(1, 20))}])
    code, _, _ = there.elchat(
        "train", "-c", str(config), "--yes", "--wait-capacity", "1h", "--detach", "--name", "espera"
    )
    assert code == 0
    assert len(there.world.sim.live_pods()) == 1
    assert there.elchat("stop", "espera", "--now")[0] == 0
    assert there.world.sim.live_pods() == []


def test_no_ssh_client(cloud, config, monkeypatch):
    monkeypatch.setattr(remote.shutil, "which", lambda name: None)
    monkeypatch.setattr(
        "tests.cloud_world.VirtualRemote.check_tools",
        lambda self: remote.OpenSsh(Path("x"), "y").check_tools(),
    )
    code, _, err = cloud().elchat("train", "-c", str(config), "--yes")
    error, hint = sentences(err)
    assert code == errors.ProviderError.exit_code == 9
    assert "Falta ssh" in error
    assert "no se ha alquilado nada" in error
    assert "apt install" in hint


def test_nobody_to_confirm(cloud, config):
    code, out, err = cloud().elchat("train", "-c", str(config))
    assert code == 2
    assert "RTX 4090" in out
    assert "repite la orden con --yes" in sentences(err)[1]
    assert not paths.runs_dir().exists()


def test_a_disk_that_fills_up_here(cloud, config, monkeypatch):
    there = cloud()
    bring = finish._bring

    def full(job, incoming):
        raise errors.DiskError(f"El disco de este ordenador se llenó al descargar en {incoming}.")

    assert there.elchat("train", "-c", str(config), "--yes", "--name", "llena", "--detach")[0] == 0
    run = runs.find("llena")
    provider = there.world.provider()
    monkeypatch.setattr(finish, "_bring", full)
    with pytest.raises(errors.DiskError) as caught:
        there.world.follow(run, provider)
    assert "La máquina sigue encendida a 0,75 $/h" in str(caught.value)
    assert "Lleva gastados" in str(caught.value)
    assert "elchat attach llena" in (caught.value.hint or "")
    assert len(there.world.sim.live_pods()) == 1
    monkeypatch.setattr(finish, "_bring", bring)
    assert there.world.follow(run, there.world.provider()) == "done"
    assert there.world.sim.live_pods() == []


def test_a_full_disk_before_renting(cloud, config, monkeypatch):
    monkeypatch.setattr("elchat.files.free_bytes", lambda path: 1000)
    code, _, err = cloud().elchat("train", "-c", str(config), "--yes")
    error, hint = sentences(err)
    assert code == errors.DiskError.exit_code == 7
    assert "No hay sitio en el disco" in error
    assert "No se ha alquilado nada" in error
    assert "resume" not in hint  # there is nothing to resume
    assert not paths.runs_dir().exists()


def test_a_download_that_keeps_arriving_damaged(cloud, config):
    there = cloud()
    assert there.elchat("train", "-c", str(config), "--yes", "--name", "rota", "--detach")[0] == 0
    run = runs.find("rota")
    there.world.remote._share = 1.0
    with pytest.raises(errors.TransferError) as caught:
        there.world.follow(run, there.world.provider())
    assert caught.value.exit_code == 13
    assert "no coincide con su huella sha256" in str(caught.value)
    assert "La máquina sigue encendida" in str(caught.value)
    assert "elchat stop rota --now" in (caught.value.hint or "")
    assert len(there.world.sim.live_pods()) == 1  # not deleted before it is verified
    there.world.remote._share = 0.0
    assert there.world.follow(run, there.world.provider()) == "done"


def test_the_account_key_in_the_pods_environment(cloud, config, monkeypatch):
    """Were it to travel, nothing is rented; were RunPod to echo it, the machine is deleted."""
    monkeypatch.setattr("cli.cloud.bundle.api_url", lambda: f"http://127.0.0.1:9/?key={KEY}")
    there = cloud()
    code, _, err = there.elchat("train", "-c", str(config), "--yes", "--name", "espia")
    error, hint = sentences(err)
    assert code == 9
    assert "La clave de la cuenta iba a viajar" in error
    assert "no se ha alquilado nada" in error
    assert "ELCHAT_RUNPOD_API_URL" in hint
    assert there.world.usd() == 0.0


def test_a_key_echoed_by_runpod_ends_the_machine(cloud, config, monkeypatch):
    from cli.runpod_client import RunpodClient

    create = RunpodClient.create_pod

    def echoing(self, body):
        pod = create(self, body)
        return pod.model_copy(update={"env": {**(pod.env or {}), "RUNPOD_API_KEY": KEY}})

    monkeypatch.setattr(RunpodClient, "create_pod", echoing)
    there = cloud()
    code, _, err = there.elchat("train", "-c", str(config), "--yes", "--name", "eco")
    error, hint = sentences(err)
    assert code == 9
    assert "La clave de la cuenta estaba en el entorno de la máquina" in error
    assert "Lleva gastados" in error
    assert "elchat resume eco" in hint
    assert there.world.sim.live_pods() == []


def test_a_guard_whose_key_is_refused_means_no_training(cloud, config):
    there = cloud(pod_key={"get": False})
    code, _, err = there.elchat("train", "-c", str(config), "--yes", "--name", "muda")
    assert code == 9
    assert "no se entrena sin guardia" in sentences(err)[0]
    assert there.world.sim.live_pods() == []


def test_the_key_is_in_no_file_request_or_trace(cloud, config, monkeypatch, tmp_path):
    """A whole run, then a crash inside it, then everything that was written is searched."""
    there = cloud()
    bodies: list[str] = []
    handle = there.world.sim.api.handle

    def spy(request):
        bodies.append(request.body.decode("utf-8", "replace") + json.dumps(request.query))
        return handle(request)

    monkeypatch.setattr(there.world.sim.api, "handle", spy)
    code, *_ = there.elchat("train", "-c", str(config), "--yes", "--name", "llave", "--detach")
    assert code == 0
    run = runs.find("llave")
    there.world.follow(run, there.world.provider())

    def broken(job):
        raise ValueError(f"Illegal header value b'Bearer {KEY}'")

    monkeypatch.setattr("cli.cloud.engine.STEPS", {"planned": broken})
    for debug in ([], ["--debug"]):
        name = f"mala{len(debug)}"
        code = main(
            ["train", "-c", str(config), "--yes", "--name", name, *debug],
            providers={"runpod": there.world.provider},
        )
        captured = there.capsys.readouterr()
        assert code == 70
        assert KEY not in captured.out + captured.err
        assert "(clave)" in captured.err
    assert any("podTerminate" in body or "PUBLIC_KEY" in body for body in bodies)
    assert [body for body in bodies if KEY in body] == []
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert any(path.parent.name == "errores" for path in written)
    assert [path for path in written if KEY.encode() in path.read_bytes()] == []
    assert "token" not in json.dumps(read_json(record.path_of(run)).get("machine") or {})
    assert KEY not in repr(there.world.provider().client) + str(vars(there.world.provider()))[:0]


def test_a_key_that_cannot_be_one_is_not_repeated(cloud, config, monkeypatch):
    code, _, err = cloud().elchat("train", "-c", str(config), "--yes", key="clave\nen dos líneas")
    assert code == 2
    assert "no tiene forma de clave" in sentences(err)[0]
    assert "dos líneas" not in err


def test_strays_are_told_by_every_command_and_deleted_by_stop_all(cloud, config, monkeypatch):
    there = cloud()
    body = {
        "name": "elchat-ajena-1-d1795399999", "image": "x", "ports": ["22/tcp"], "env": {},
        "gpu": {"id": "NVIDIA A40", "count": 1},
    }  # fmt: skip
    there.world.provider().client.create_pod(body)
    monkeypatch.setattr("time.time", there.world.sim.clock.now)
    monkeypatch.setattr("time.sleep", there.world.sim.sleep)
    there.world.provider().quote(parsed(config.parent / "textos"))
    _, out, err = there.elchat("runs")
    assert "AVISO: 1 máquina(s) de elchat encendida(s)" in err
    assert "elchat-ajena-1-d1795399999" in err
    assert "0,49 $/h" in err
    code, _, err = there.elchat("stop", "--all")
    assert code == 2
    assert "elchat stop --all --yes" in err
    code, out, err = there.elchat("stop", "--all", "--yes")
    assert code == 0, err
    assert "elchat-ajena-1-d1795399999: borrada" in out
    assert there.world.sim.live_pods() == []
    assert "AVISO" not in there.elchat("runs")[2]


def test_a_stop_that_broke_half_way_does_not_stop_the_resume_after_it(cloud, config):
    """The machine being deleted is let go, and another one rented."""
    there = cloud()
    there.elchat("train", "-c", str(config), "--yes", "--name", "medias", "--detach")
    code, _, err = there.elchat("stop", "medias", "--now", key="rpa_otra_clave_0")
    assert code == 2
    assert "elchat stop medias --now" in sentences(err)[1]
    assert len(there.world.sim.live_pods()) == 1
    code, out, _ = there.elchat("resume", "medias", "--detach")
    assert code == 0
    assert "sigue en marcha" in out
    assert len(there.world.sim.live_pods()) == 1
    assert len(there.world.sim.world.pods) == 2
    assert there.world.follow(runs.find("medias"), there.world.provider()) == "done"


def test_a_machine_that_does_not_answer_is_told_by_status(cloud, config):
    there = cloud()
    there.elchat("train", "-c", str(config), "--yes", "--name", "lejos", "--detach")
    there.world.sim.happen(there.world.sim.live_pods()[0].id, "network_drop", scope="ssh")
    code, out, _ = there.elchat("status", "lejos")
    assert code == 0
    assert "la máquina no responde ahora" in there.world.said[-1]
    assert "0,75 $/h" in out


def test_without_a_key_what_is_known_is_still_told(cloud, config, monkeypatch):
    there = cloud()
    there.elchat("train", "-c", str(config), "--yes", "--name", "sinclave", "--detach")
    monkeypatch.delenv("RUNPOD_API_KEY")
    run, said = runs.find("sinclave"), []
    RunpodProvider(remote_for=lambda _: there.world.remote, say=said.append).status(run)
    assert "falta RUNPOD_API_KEY" in said[0]
    assert main(["cost", "sinclave"]) == 0
    assert "no se ha preguntado a RunPod" in there.capsys.readouterr().out


def test_a_log_for_programs(cloud, config):
    there = cloud()
    there.elchat("train", "-c", str(config), "--yes", "--name", "letra", "--detach")
    runs.find("letra").log_path.write_text("uno\ndos «2»\n", encoding="utf-8")
    there.world.sim.happen(there.world.sim.live_pods()[0].id, "network_drop", scope="ssh")
    _, out, _ = there.elchat("logs", "letra", "--json")
    assert [json.loads(line)["line"] for line in out.splitlines()] == ["uno", "dos «2»"]


class Doctor:
    """`elchat doctor` before an account that answers as it is told."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, world: CloudWorld) -> None:
        def client(key: str) -> RunpodClient:
            return RunpodClient(key, transport=world.sim.transport(), clock=world.sim.clock.now)

        monkeypatch.setattr("cli.runpod_client.RunpodClient", client)

    def lines(self, capsys: pytest.CaptureFixture[str]) -> dict[str, dict[str, str]]:
        main(["doctor", "--json"])
        return {item["name"]: item for item in json.loads(capsys.readouterr().out)}


def test_doctor_tells_the_account(cloud, monkeypatch, capsys):
    there = cloud(account={"balance_usd": 0.6})
    client = there.world.provider(key=KEY).client
    client.create_volume("datos", 50, "EU-RO-1")
    client.create_pod(
        {"name": "elchat-ajena-1-d1", "image": "x", "gpu": {"id": "NVIDIA A40", "count": 1}}
    )
    found = Doctor(monkeypatch, there.world).lines(capsys)
    assert {"ssh", "rsync", "disco", "Python"} <= set(found)
    assert found["RUNPOD_API_KEY"]["level"] == "ok"
    assert (found["saldo"]["level"], found["saldo"]["text"]) == ("warning", "0,60 $")
    assert "elchat-ajena-1-d1 a 0,49 $/h" in found["máquinas sueltas"]["text"]
    assert found["máquinas sueltas"]["level"] == "error"
    assert "datos (50 GB)" in found["volúmenes de red"]["text"]
    assert "reloj" not in found
    there.world.sim.clock.now = lambda: there.world.sim.world.now - 605.0
    clock = Doctor(monkeypatch, there.world).lines(capsys)["reloj"]["text"]
    assert clock.startswith("10 min")
    assert "atrasado" in clock


@pytest.mark.parametrize(("status", "word"), [(401, "la rechaza"), (403, "no tiene permisos")])
def test_doctor_tells_a_key_that_does_not_do(cloud, monkeypatch, capsys, status, word):
    there = cloud(requests=[{"kind": "status", "status": status, "path": "/v2/*"}])
    found = Doctor(monkeypatch, there.world).lines(capsys)
    assert found["RUNPOD_API_KEY"]["level"] == "error"
    assert word in found["RUNPOD_API_KEY"]["text"]


def test_exit_codes_are_documented():
    text = (Path(__file__).parents[2] / "docs" / "runpod.md").read_text(encoding="utf-8")
    found = [getattr(errors, name) for name in dir(errors) if name.endswith("Error")]
    for error in found:
        assert f"| {error.exit_code} |" in text, error
    assert "| 130 |" in text
    assert "| 70 |" in text


def test_resume_without_money_says_so(cloud, config):
    there = cloud()
    assert there.elchat("train", "-c", str(config), "--yes", "--name", "corta", "--detach")[0] == 0
    run = runs.find("corta")
    there.world.sim.sleep(10 * 3600)  # the laptop off until long after the guard deleted it
    assert there.world.sim.live_pods() == []
    assert there.world.usd() <= 2.0
    state = there.world.follow(run, there.world.provider())
    assert state == "stopped"
    assert record.load(run).phase == "budget"  # type: ignore[union-attr]
    code, _, err = there.elchat("resume", "corta")
    assert code == errors.BudgetError.exit_code == 10
    assert "--budget" in sentences(err)[1]
    there.elchat("resume", "corta", "--budget", "4", "--detach")
    assert there.world.follow(run, there.world.provider()) == "done"
    assert there.world.usd() <= 4.0
