"""Runs on a rented RunPod GPU. The record in the run folder is the only memory (cli.cloud)."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx

from cli import log_tail, preflight
from cli.cloud import care, context, engine, launch, quote, record, strays
from cli.cloud.context import Job
from cli.cloud.ledger import Ledger
from cli.cloud.record import Record
from cli.cloud.remote import HostKeyChanged, OpenSsh, Remote, RemoteFailure, Unreachable
from cli.output import dollars, note
from cli.providers import Terms, require_runpod_key
from cli.runpod_client import AuthRefused, Forbidden, RunpodClient, RunpodError
from elchat import paths
from elchat.config import Config
from elchat.errors import (
    AuthError,
    BalanceError,
    BudgetError,
    DiskError,
    NetworkError,
    NoCapacityError,
    ProviderError,
    RunError,
)
from elchat.files import require_free_space
from elchat.runs import Run, State, Status

LOG_POLL_S = 1.0
STOP_S = 1800.0
LOCK_S = 900.0
LONGEST_WAIT_S = 600.0  # a step waits less: a later moment is a clock set back


@dataclass(frozen=True)
class Quote:
    """What renting would cost, from today's catalogue.

    Attributes:
        balance_usd: None when RunPod does not tell.
    """

    offers: list[quote.Offer]
    balance_usd: float | None
    strays: list[strays.Stray]


class RunpodProvider:
    """See `cli.providers.Provider`.

    Args:
        clock, sleep, transport, remote_for: the world outside, replaceable by a simulator.
        say: where progress is told.
    """

    name = "runpod"

    def __init__(
        self,
        *,
        key: str | None = None,
        clock: Callable[[], float] = time.time,
        sleep: Callable[[float], None] = time.sleep,
        transport: httpx.BaseTransport | None = None,
        remote_for: Callable[[Run | None], Remote] | None = None,
        say: Callable[[str], None] = note,
    ) -> None:
        self._key = key
        self._clock = clock
        self._sleep = sleep
        self._transport = transport
        self._remote_for = remote_for or open_ssh
        self._say = say
        self._client: RunpodClient | None = None
        self._due: dict[Path, float] = {}
        self._configs: dict[Path, Config] = {}

    @property
    def client(self) -> RunpodClient:
        """RunPod's API; the key is read when it is first needed.

        Raises:
            AuthError: there is no key.
        """
        if self._client is None:
            key = self._key or require_runpod_key()
            self._client = RunpodClient(
                key, transport=self._transport, sleep=self._sleep, clock=self._clock
            )
        return self._client

    def _now(self) -> float:
        """RunPod's time, once it has answered: money is counted by its clock, not by this one."""
        return self._clock() + (self._client.skew_s if self._client else 0.0)

    # --- before renting ----------------------------------------------------------------------

    def quote(self, config: Config) -> Quote:
        """Everything that can be refused before a run exists, and what it would cost.

        Raises:
            AuthError, BalanceError, BudgetError, NoCapacityError, DiskError, NetworkError.
        """
        self._remote_for(None).check_tools()
        shape = preflight.model_shape(config.model.base)
        if shape is not None:
            needed = shape.n_params * (4 + 3 * 12)  # the result, two checkpoints and one coming
            _require_room(needed)
        assert config.compute.budget_usd is not None
        try:
            prices = quote.live_prices(self.client, config.compute.cloud)
            found = strays.find(self.client, self._now())
        except (AuthRefused, Forbidden):
            raise wrong_key() from None
        except RunpodError as error:
            raise NetworkError(
                f"RunPod no responde ({error}); no se ha alquilado nada.",
                hint="Repite dentro de un rato, o mira el plan sin red: elchat train --dry-run",
            ) from None
        account = self.client.account()
        balance = account.clientBalance if account else None
        remaining = config.compute.budget_usd
        if balance is not None:
            if balance <= 0:
                raise BalanceError(
                    f"La cuenta de RunPod no tiene saldo ({dollars(balance)}); no se ha alquilado "
                    "nada y no ha costado nada.",
                    hint="Añade saldo en la consola de RunPod (Billing) y repite la orden.",
                )
            remaining = min(remaining, launch.BALANCE_SHARE * balance)
        offers = quote.offers(config, shape, prices, now=self._now(), remaining_usd=remaining)
        _refuse_useless(config, offers, remaining, balance)
        return Quote(offers, balance, found)

    # --- the protocol --------------------------------------------------------------------------

    def submit(self, run: Run, terms: Terms | None = None) -> None:
        terms = terms or Terms()
        config = run.config()
        assert config.compute.budget_usd is not None
        with record.locked(run):
            if record.load(run) is None:
                fresh = Record(budget_usd=terms.budget_usd or config.compute.budget_usd)
                self._apply(fresh, terms)
                record.save(run, fresh)
        self._drive(run, lambda known: known.phase in ("running", "fetching"))
        self._raise_if_failed(run)

    def status(self, run: Run) -> tuple[State, Status]:
        known = record.load(run)
        if known is not None and known.phase == "running":
            try:
                with record.locked(run, wait_s=0.0):
                    self._glance(run)
            except RunError:
                pass  # another command looks after it: its files are fresh
            known = record.load(run)
        return self._state(run, known), run.status()

    def advance(self, run: Run) -> tuple[State, Status]:
        """One step if it is due, and the state after it; what a follower calls again and again."""
        known = record.load(run)
        is_due = self._is_due(run)
        if known is not None and known.phase not in record.ENDED and is_due:
            try:
                with record.locked(run, wait_s=0.0):
                    self._due[run.path] = self._step(run) + self._clock()
            except RunError:
                self._due[run.path] = self._clock() + 2.0
            known = record.load(run)
        return self._state(run, known), run.status()

    def _is_due(self, run: Run) -> bool:
        due, now = self.due(run), self._clock()
        return now >= due or now < due - LONGEST_WAIT_S

    def due(self, run: Run) -> float:
        """When `advance` has something to do again (epoch)."""
        return self._due.get(run.path, 0.0)

    def logs(
        self, run: Run, *, lines: int | None, follow: bool, until: Callable[[], bool] | None = None
    ) -> Iterator[str]:
        known = record.load(run)
        if not follow and known is not None and known.phase == "running":
            self.status(run)
        return log_tail.lines(run, count=lines, follow=follow, until=until, poll_s=LOG_POLL_S)

    def stop(
        self, run: Run, *, now: bool = False, on_wait: Callable[[State, Status], None] | None = None
    ) -> State:
        known = record.load(run)
        if known is None or known.phase in record.ENDED:
            return self._state(run, known)
        run.request("stop")
        if now:
            with record.locked(run, wait_s=LOCK_S):
                self._cut(run)
        self._drive(run, lambda _: False, limit_s=STOP_S, on_wait=on_wait)
        known = record.load(run)
        assert known is not None
        if known.phase not in record.ENDED:
            machine = known.machine.name if known.machine else "(ninguna)"
            raise ProviderError(
                f"«{run.id}» no termina: no se pudo guardar y borrar la máquina {machine}, que "
                f"sigue cobrando. {self._cost(run)}",
                hint=f"Bórrala sin guardar: elchat stop {run.id} --now",
            )
        return self._state(run, known)

    def resume(self, run: Run, terms: Terms | None = None) -> None:
        terms = terms or Terms()
        with record.locked(run, wait_s=LOCK_S):
            known = record.load(run)
            if known is not None and known.phase == "done":
                raise RunError(
                    f"«{run.id}» ya terminó: su modelo está en {run.model_path}.",
                    hint=f"Habla con él: elchat chat {run.id}",
                )
            run.clear("stop")
            if known is not None:
                self._apply(known, terms)
                if known.phase == "deleting" and known.after != "done":
                    known.after = "planned"  # once that machine is gone, another
                if known.phase in record.ENDED:
                    known.phase, known.message, known.tried = "planned", None, {}
                    self._clear_outcome(run)
                record.save(run, known)
        self.submit(run, terms)

    def fetch(self, run: Run) -> Path:
        known = record.load(run)
        if known is None or known.phase != "done" or not run.model_path.is_dir():
            raise RunError(
                f"«{run.id}» no tiene todavía un modelo terminado en este ordenador.",
                hint=f"Síguela hasta que llegue: elchat attach {run.id}",
            )
        return run.model_path

    # --- steps -----------------------------------------------------------------------------------

    def _drive(
        self,
        run: Run,
        until: Callable[[Record], bool],
        *,
        limit_s: float | None = None,
        on_wait: Callable[[State, Status], None] | None = None,
    ) -> None:
        """Step until the run has ended, `until` says so, or the time is over."""
        began = self._clock()
        while True:
            known = record.load(run)
            assert known is not None
            if known.phase in record.ENDED or until(known):
                return
            if limit_s is not None and self._clock() - began > limit_s:
                return
            with record.locked(run, wait_s=LOCK_S):
                delay_s = self._step(run)
            if on_wait is not None:
                on_wait(self._state(run, record.load(run)), run.status())
            self._sleep(delay_s)

    def _step(self, run: Run) -> float:
        known = record.load(run)
        assert known is not None
        return engine.step(self._job(run, known))

    def _glance(self, run: Run) -> None:
        """Bring status.json up to date; decide nothing."""
        known = record.load(run)
        assert known is not None
        try:
            job = self._job(run, known)
        except AuthError:
            self._say("AVISO: falta RUNPOD_API_KEY; esto es lo último que se supo de la máquina.")
            return
        try:
            care.glance(job)
        except (Unreachable, HostKeyChanged, RemoteFailure, RunpodError, AuthError):
            self._say("AVISO: la máquina no responde ahora; esto es lo último que llegó de ella.")
            care.write_status(job, {})

    def _cut(self, run: Run) -> None:
        """Put the machine on its way to deletion, whatever it was doing."""
        known = record.load(run)
        assert known is not None
        job = self._job(run, known)
        if known.phase == "deleting" or known.phase in record.ENDED:
            return
        if known.machine is None or (known.phase == "creating" and known.machine.asked_at is None):
            job.go("stopped", machine=None, message="Detenida antes de alquilar nada.")
        elif known.phase != "creating":  # one that may be appearing is waited for, then deleted
            job.dispose("stopped", "Cortada sin guardar.")

    def _job(self, run: Run, known: Record) -> Job:
        return Job(
            run=run,
            config=self._config(run),
            record=known,
            ledger=Ledger(run.path),
            client=self.client,
            remote=self._remote_for(run),
            clock=self._now,
            say=self._say,
        )

    def _state(self, run: Run, known: Record | None) -> State:
        return record.state_of(run, known, self._now())

    def _config(self, run: Run) -> Config:
        if run.path not in self._configs:
            self._configs[run.path] = run.config()
        return self._configs[run.path]

    def _apply(self, known: Record, terms: Terms) -> None:
        if terms.budget_usd is not None:
            known.budget_usd = terms.budget_usd
        known.restarts_left = terms.max_restarts
        wait_s = terms.wait_capacity_s
        known.wait_until = self._now() + wait_s if wait_s else None

    def _clear_outcome(self, run: Run) -> None:
        if run.status_path.exists():
            run.update_status(outcome=None, message=None)

    def _cost(self, run: Run) -> str:
        known = record.load(run)
        assert known is not None
        return self._job(run, known).cost_text()

    def _raise_if_failed(self, run: Run) -> None:
        known = record.load(run)
        if known is not None and known.phase in ("failed", "lost"):
            raise ProviderError(
                f"{known.message or 'No se pudo empezar a entrenar.'} {self._cost(run)}",
                hint=f"Vuelve a intentarlo: elchat resume {run.id}",
            )


def open_ssh(run: Run | None) -> Remote:
    """The system's ssh with the run's own keys."""
    folder = (run.path if run else paths.home()) / "cloud" / "ssh"
    return OpenSsh(folder, f"{context.ROOT}/src/cli/pod/helper.py")


def wrong_key() -> AuthError:
    """The sentence for a key RunPod does not accept."""
    return AuthError(
        "RunPod rechaza la clave RUNPOD_API_KEY; no se ha alquilado nada y no ha costado nada.",
        hint="Crea otra en la consola de RunPod (Settings → API Keys) y repite: "
        "export RUNPOD_API_KEY=tu_clave",
    )


def _require_room(n_bytes: int) -> None:
    try:
        require_free_space(paths.runs_dir(), n_bytes, "el modelo y sus puntos de guardado")
    except DiskError as error:
        raise DiskError(
            f"{error} No se ha alquilado nada.",
            hint="Libera espacio o elige otra carpeta con ELCHAT_HOME, y repite la orden.",
        ) from None


def _refuse_useless(
    config: Config, offers: list[quote.Offer], remaining: float, balance: float | None
) -> None:
    if not offers:
        raise NoCapacityError(
            "Ninguna de las GPU de compute.gpus está hoy en el catálogo de RunPod; no se ha "
            "alquilado nada.",
            hint=f"Cambia compute.gpus o compute.cloud en {config.name}.",
        )
    if not all(offer.problem for offer in offers):
        return
    problems = "; ".join(sorted({f"{offer.name}: {offer.problem}" for offer in offers}))
    if balance is not None and remaining < (config.compute.budget_usd or 0.0):
        raise BalanceError(
            f"El saldo de la cuenta ({dollars(balance)}) no alcanza para ninguna de las GPU "
            f"admitidas ({problems}); no se ha alquilado nada.",
            hint="Añade saldo en la consola de RunPod (Billing) y repite la orden.",
        )
    raise BudgetError(
        f"Con {dollars(remaining)} no se puede alquilar ninguna de las GPU admitidas "
        f"({problems}); no se ha alquilado nada.",
        hint="Sube el límite: --set compute.budget_usd=N, o elige otras GPU.",
    )
