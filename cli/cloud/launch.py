"""Renting: choose an offer, write it down, ask for it, and never end up with two machines."""

from __future__ import annotations

import re
import secrets

from cli import preflight
from cli.cloud import money, quote
from cli.cloud.bundle import pod_request
from cli.cloud.context import Job
from cli.cloud.record import PREFIX, Machine, Phase, parse_name
from cli.output import dollars, duration, number
from cli.runpod_client import (
    BrokenContract,
    Forbidden,
    NoBalance,
    NoCapacity,
    RateLimited,
    Transient,
)
from cli.runpod_models import Pod
from elchat import hardware
from elchat.errors import BalanceError, BudgetError, NoCapacityError, ProviderError

MAX_FAILED_BOOTS = 3  # each costs up to a quarter of an hour
STALE_PLAN_S = 60.0
SETTLE_S = 120.0  # a request without an answer may still make a pod appear
LIST_EVERY_S = 15.0
LIST_GAP_S = 90.0  # between two looks: longer, and a machine may have come and gone unseen
CAPACITY_WAIT_S = 60.0
NO_MACHINE = re.compile(  # the texts seen for the same 400
    r"no longer any instances|no instances|could not find any pods|no available datacenter"
    r"|does not have the resources",
    re.IGNORECASE,
)
BALANCE_SHARE = 0.95  # of the account's balance that a run may plan with


def plan(job: Job) -> float:
    """Phase planned: decide which machine to ask for next.

    Raises:
        BudgetError: the money left rents nothing useful.
        NoCapacityError: every offer has been refused.
    """
    if job.run.is_requested("stop"):
        job.go("stopped", message="Detenida antes de alquilar nada.")
        return 0.0
    remaining = spendable(job)
    now = job.now()
    offers = _offers(job, remaining)
    usable = [offer for offer in offers if offer.problem is None]
    if not usable:
        raise no_offer(job, offers, remaining)
    untried = [offer for offer in usable if offer.key not in job.record.tried]
    if not untried or job.record.failed_boots >= MAX_FAILED_BOOTS:
        return _all_refused(job)
    offer = untried[0]
    window = money.window(
        now,
        remaining,
        offer.usd_per_h,
        training_s=quote.wanted_s(job.config, job.ledger.rented_s(now)),
    )
    assert window is not None
    job.record.pods += 1
    job.record.machine = Machine(
        name=f"{PREFIX}{job.run.id}-{job.record.pods}-d{int(window.deadline)}",
        gpu=offer.gpu,
        cloud=offer.cloud,
        usd_per_h=offer.usd_per_h,
        disk_usd_per_h=quote.disk_rate(job.config),
        token=secrets.token_hex(16),
        created=now,
        boot_until=window.boot_until,
        job_by=window.job_by,
        train_until=window.train_until,
        save_at=window.save_at,
        deadline=window.deadline,
        lag_s=window.lag_s,
    )
    job.go("creating")
    return 0.0


def spendable(job: Job) -> float:
    """Dollars the next machine may cost: the budget's rest, or less if the account has less.

    Raises:
        BalanceError: the account is empty.
    """
    account = job.client.account()
    remaining = job.record.budget_usd - job.spent()  # by RunPod's clock, now that it has answered
    if account is None or account.clientBalance is None:
        return remaining
    if account.clientBalance <= 0:
        job.go("failed", message="La cuenta de RunPod no tiene saldo.")
        raise short_balance(job, f"es de {dollars(account.clientBalance)}")
    return min(remaining, BALANCE_SHARE * account.clientBalance)


def create(job: Job) -> float:
    """Phase creating: ask for the machine, or find out what became of asking.

    RunPod has no idempotency key, so the name is: it is looked for before asking, and after an
    answer that did not arrive it is looked for until it settles.
    """
    machine = job.machine
    if machine.asked_at is None and job.now() > machine.created + STALE_PLAN_S:
        job.go("planned", machine=None)  # planned long ago by a command that was killed
        return 0.0
    found = sweep(job)
    if found is not None:
        return adopt(job, found)
    if machine.asked_at is not None:
        return _look_again(job, machine.asked_at)
    if job.run.is_requested("stop"):
        job.go("stopped", machine=None, message="Detenida antes de alquilar nada.")
        return 0.0
    job.ledger.open(
        machine.name,
        time=machine.created,
        usd_per_h=machine.usd_per_h,
        gpu=machine.gpu,
        cloud=machine.cloud,
    )
    machine.asked_at = job.now()
    job.save()
    return _ask(job)


def _look_again(job: Job, asked_at: float) -> float:
    """The answer did not arrive and the name is not there: it may still come, or have gone."""
    machine, now = job.machine, job.now()
    since = machine.listed_at or asked_at
    machine.is_unwatched = machine.is_unwatched or now > since + LIST_GAP_S
    machine.listed_at = now
    job.save()
    if now < asked_at + SETTLE_S:
        return LIST_EVERY_S
    _count_silence(job)
    if not machine.is_unwatched:
        return _never_was(job, None)
    # Nobody came to it, so its guard deleted it by then, if it ever was: on the expensive side.
    job.ledger.close(machine.name, time=min(now, machine.meet_by + machine.lag_s))
    job.go("planned", machine=None)
    return 0.0


def _ask(job: Job) -> float:
    machine, body = job.machine, pod_request(job)
    if any(job.client.holds(text) for text in body["env"].values()):
        _never_was(job, None, phase="failed")
        raise ProviderError(
            "La clave de la cuenta iba a viajar en el entorno de la máquina; no se ha alquilado "
            "nada.",
            hint="Comprueba ELCHAT_RUNPOD_API_URL: no debe contener la clave.",
        )
    job.say(
        f"Pidiendo {machine.gpu} ({machine.cloud}) a {number(machine.usd_per_h, 2)} $/h: como "
        f"mucho {duration(machine.deadline - machine.created)}."
    )
    try:
        pod = job.client.create_pod(body)
    except (NoCapacity, Forbidden) as error:
        job.say(f"  no: {error}")
        return _never_was(job, str(error))
    except NoBalance as error:
        _never_was(job, None, phase="failed")
        raise short_balance(job, f"no alcanza para alquilar ({error})") from None
    except BrokenContract as error:
        _never_was(job, None, phase="failed")
        raise ProviderError(
            f"RunPod no entiende la petición ({error}). {job.cost_text()}",
            hint="Su API ha cambiado: actualiza elchat o cuéntalo en el proyecto.",
        ) from None
    except RateLimited as error:
        _never_was(job, None)
        return error.retry_after_s
    except Transient as error:
        job.say(f"  sin respuesta ({error}) Se comprueba si la máquina llegó a existir.")
        return LIST_EVERY_S
    return adopt(job, pod)


def adopt(job: Job, pod: Pod) -> float:
    """The machine exists: note its id before anything else."""
    machine = job.machine
    machine.id = pod.id
    job.record.silences = 0
    job.ledger.bind(machine.name, pod.id)
    if any(job.client.holds(text) for text in (pod.env or {}).values()):
        job.dispose("failed", "La clave de la cuenta estaba en el entorno de la máquina.")
        return 0.0
    job.go("booting")
    offered = machine.usd_per_h
    watch_money(job, pod)
    if (pod.cost or 0.0) > 1.001 * offered:
        cost = number(pod.cost, 2)
        job.reject(f"cuesta {cost} $/h y se ofreció a {number(offered, 2)}")
    return 0.0


def watch_money(job: Job, pod: Pod) -> None:
    """Bring the deadline forward if the money no longer reaches it.

    The machine may cost more than was offered (RunPod does not say whether `cost` includes the
    disk: it is added), another of this run may have appeared late, the limit may have been lowered.
    """
    machine = job.machine
    real = (pod.cost or 0.0) + machine.disk_usd_per_h
    if real > machine.usd_per_h:
        job.ledger.rate(machine.name, real)
        machine.usd_per_h = real
        job.save()
    left = job.record.budget_usd - job.spent_before()
    reached = machine.created + 3600.0 * left / machine.usd_per_h - machine.lag_s
    early_s = machine.deadline - reached
    if early_s < 1.0:
        return
    machine.deadline -= early_s
    machine.save_at -= early_s
    machine.train_until = min(machine.train_until, machine.save_at)
    machine.job_by = min(machine.job_by, machine.save_at)
    machine.is_told = False
    job.save()


def sweep(job: Job) -> Pod | None:
    """Delete this run's pods that are not its machine: answers that came late, or came twice.

    Returns the machine's own pod if RunPod lists it.
    """
    machine = job.record.machine
    current, current_id = (machine.name, machine.id) if machine else (None, None)
    listed = [pod for pod in job.client.list_pods() if _is_of(pod, job.run.id)]
    mine = next((p for p in listed if p.name == current and current_id in (None, p.id)), None)
    for pod in listed:
        if pod is not mine:
            job.ledger.revive(pod.name)
            job.client.delete_pod(pod.id)
    names = {pod.name for pod in listed}
    for rent in job.ledger.rents():
        if rent.until is None and rent.pod != current and rent.pod not in names:
            job.ledger.close(rent.pod, time=job.now())
    return mine


def short_balance(job: Job, what: str) -> BalanceError:
    """The sentence for an account without the money to rent."""
    return BalanceError(
        f"El saldo de la cuenta de RunPod {what}. {job.cost_text()}",
        hint="Añade saldo en la consola de RunPod (Billing) y sigue con: "
        f"elchat resume {job.run.id}",
    )


def no_offer(job: Job, offers: list[quote.Offer], remaining: float) -> ProviderError:
    """Why nothing can be rented, with the run left where `resume` goes on."""
    job.go("budget" if job.ledger.rents() else "failed", message="El dinero que queda no alcanza.")
    is_balance = remaining < job.record.budget_usd - job.spent() - 0.005
    if not offers:
        return NoCapacityError(
            "Ninguna de las GPU de compute.gpus está hoy en el catálogo de RunPod.",
            hint="Cambia compute.gpus o compute.cloud; precios: elchat estimate",
        )
    problems = sorted({f"{offer.name}: {offer.problem}" for offer in offers})
    return BudgetError(
        f"Con {dollars(max(0.0, remaining))}{' (lo que da el saldo)' if is_balance else ''} no se "
        f"puede alquilar ninguna de las GPU admitidas ({'; '.join(problems)}). {job.cost_text()}",
        hint=f"Añade saldo en la consola de RunPod (Billing) y sigue: elchat resume {job.run.id}"
        if is_balance
        else f"Sube el límite: elchat resume {job.run.id} --budget DÓLARES",
    )


def _offers(job: Job, remaining: float) -> list[quote.Offer]:
    return quote.offers(
        job.config,
        preflight.model_shape(job.config.model.base),
        quote.live_prices(job.client, job.config.compute.cloud),
        now=job.now(),
        remaining_usd=max(0.0, remaining),
        rented_s=job.ledger.rented_s(job.now()),
    )


def _all_refused(job: Job) -> float:
    """No offer left: wait for capacity if that was asked for, or give up with the reasons."""
    reasons, boots = _reasons(job.record.tried), job.record.failed_boots
    job.record.tried, job.record.failed_boots = {}, 0
    if boots >= MAX_FAILED_BOOTS:
        job.go("failed", message=f"{boots} máquinas seguidas no llegaron a entrenar.")
        raise ProviderError(
            f"Se han devuelto {boots} máquinas seguidas sin llegar a entrenar ({reasons}). "
            f"{job.cost_text()}",
            hint=f"Prueba más tarde: elchat resume {job.run.id}   o con otras compute.gpus.",
        )
    if job.record.wait_until is not None and job.now() < job.record.wait_until:
        job.say("Ninguna GPU disponible ahora; se vuelve a probar en un minuto.")
        job.save()
        return CAPACITY_WAIT_S
    job.go("failed", message="No hay ninguna GPU disponible.")
    raise NoCapacityError(
        f"Ninguna de las GPU admitidas se puede alquilar ahora ({reasons}). {job.cost_text()}",
        hint=f"Prueba más tarde: elchat resume {job.run.id}   o espera a que haya: "
        f"elchat resume {job.run.id} --wait-capacity 2h",
    )


def _reasons(tried: dict[str, str]) -> str:
    """Which offers failed, by reason: "sin máquinas libres: RTX 4090 (segura y comunidad)"."""
    clouds = {"secure": "segura", "community": "comunidad"}
    found: dict[str, dict[str, list[str]]] = {}
    for key, why in tried.items():
        gpu, cloud = key.split("|")
        why = "sin máquinas libres" if NO_MACHINE.search(why) else why.rstrip(".")
        found.setdefault(why, {}).setdefault(hardware.gpu_by_id(gpu).name, []).append(clouds[cloud])
    return "; ".join(
        f"{why}: " + ", ".join(f"{name} ({' y '.join(where)})" for name, where in gpus.items())
        for why, gpus in found.items()
    )


def _count_silence(job: Job) -> None:
    """Two silences in a row from the same offer count as a refusal."""
    key = f"{job.machine.gpu}|{job.machine.cloud}"
    job.record.silences += 1
    if job.record.silences >= 2:
        job.record.silences = 0
        job.record.tried[key] = "RunPod no respondió"


def _never_was(job: Job, why: str | None, phase: Phase = "planned") -> float:
    """The machine asked for certainly does not exist."""
    machine = job.machine
    job.ledger.void(machine.name, time=job.now())
    if why is not None:
        job.record.tried[f"{machine.gpu}|{machine.cloud}"] = why
    job.go(phase, machine=None)
    return 0.0


def _is_of(pod: Pod, run_id: str) -> bool:
    parsed = parse_name(pod.name)
    return parsed is not None and parsed[0] == run_id
