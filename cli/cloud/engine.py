"""One step of a rented run at a time, whatever phase it is in and whoever left it there."""

from __future__ import annotations

from collections.abc import Callable

from cli.cloud import boot, care, finish, launch
from cli.cloud.context import Job
from cli.cloud.record import ENDED, Phase
from cli.runpod_client import AuthRefused, Forbidden, RunpodError
from elchat.errors import AuthError, DiskError
from elchat.files import raise_if_disk_full

API_RETRY_S = 15.0
STEPS: dict[Phase, Callable[[Job], float]] = {
    "planned": launch.plan,
    "creating": launch.create,
    "booting": boot.boot,
    "running": care.tend,
    "fetching": finish.fetch,
    "deleting": finish.delete,
}


def step(job: Job) -> float:
    """Do the next thing and return the seconds to wait before the one after.

    Raises:
        ElchatError: something the user must decide; the record says where to go on.
    """
    if job.record.phase in ENDED:
        return 0.0
    try:
        return STEPS[job.record.phase](job)
    except (AuthRefused, Forbidden) as error:
        machine = job.record.machine
        still = "" if machine is None else f" La máquina {machine.name} puede seguir encendida."
        raise AuthError(
            f"RunPod rechaza la clave RUNPOD_API_KEY ({error}).{still} {job.cost_text()}",
            hint="Crea otra en la consola de RunPod (Settings → API Keys) y sigue con: "
            f"elchat resume {job.run.id}   o bórrala: elchat stop {job.run.id} --now",
        ) from None
    except OSError as error:
        try:
            raise_if_disk_full(error, job.run.path)
        except DiskError as full:
            raise DiskError(f"{full} {job.still_on()}", hint=job.again()) from None
        raise
    except DiskError as error:
        raise DiskError(f"{error} {job.still_on()}", hint=job.again()) from None
    except RunpodError as error:
        job.say(f"RunPod no responde bien ({error}); se insiste.")
        return API_RETRY_S
