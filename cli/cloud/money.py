"""How long a rented machine may live. Pure arithmetic, every moment an absolute epoch.

    created ─ boot ─ training ─ train_until ─ result ─ save_at ─ last copies ─ deadline ─ lag
                                                                                           │
                                  everything up to here costs at most the money left ──────┘

The machine's guard and the command line both delete at `deadline`; `lag` is paid for in advance, so
that a deletion which has to be repeated still fits.
"""

from __future__ import annotations

from dataclasses import dataclass

DISK_USD_PER_GB_MONTH = 0.10  # container disk and persistent volume of a running pod
STOPPED_DISK_USD_PER_GB_MONTH = 0.20
HOURS_PER_MONTH = 730.0
BOOT_WAIT_S = 900.0
JOB_WAIT_S = 2700.0  # after the boot: uploading the user's texts and installing packages
MIN_TRAINING_S = 240.0
SAVE_SHARE = 0.95  # of the money, when the trainer is asked to save


@dataclass(frozen=True)
class Window:
    """The life of one machine, decided before it is rented.

    Attributes:
        boot_until: it must be training by then, or it is deleted.
        train_until: the last training step is planned to end by then.
        save_at: when the guard asks for a checkpoint.
        deadline: when it is deleted, whatever it is doing.
        lag_s: time paid for after the deadline.
        job_by: when the guard deletes a machine nobody has given anything to do.
        worst_usd: what it costs if it lives until `deadline` and its deletion takes `lag`.
    """

    created: float
    boot_until: float
    train_until: float
    save_at: float
    deadline: float
    lag_s: float
    job_by: float
    worst_usd: float


def disk_usd_per_h(disk_gb: float) -> float:
    """Price of the disk of a running pod."""
    return disk_gb * DISK_USD_PER_GB_MONTH / HOURS_PER_MONTH


def lag_s(total_s: float) -> float:
    """Paid time kept for a deletion that must be repeated: RunPod silent for 10 to 21 minutes."""
    return min(1260.0, max(600.0, 0.1 * total_s))


def window(
    now: float, remaining_usd: float, usd_per_h: float, *, training_s: float | None
) -> Window | None:
    """Plan a machine that costs at most `remaining_usd`, or None if it could not train.

    Args:
        usd_per_h: everything it costs per hour, disk included.
        training_s: wanted length, from creation to the last training step; None for all the money.

    Worked example: 10 $ at 1 $/h are 36 000 s: 1 260 of lag leave a deadline at 34 740, a save at
    32 940 (95 % of the money, less the lag) and training until 32 340.
    """
    total_s = 3600.0 * remaining_usd / usd_per_h
    lag = lag_s(total_s)
    deadline = now + total_s - lag
    save_at = min(now + SAVE_SHARE * total_s - lag, deadline - 60.0)
    boot_s = min(BOOT_WAIT_S, 0.4 * total_s)
    finish_s = min(600.0, 0.12 * total_s)
    train_until = save_at - finish_s
    if training_s is not None:
        train_until = min(train_until, now + training_s)
    if train_until - now < MIN_TRAINING_S + 0.25 * boot_s:
        return None
    return Window(
        created=now,
        boot_until=now + boot_s,
        train_until=train_until,
        save_at=save_at,
        deadline=deadline,
        lag_s=lag,
        job_by=min(now + boot_s + JOB_WAIT_S, save_at),
        worst_usd=(deadline + lag - now) / 3600.0 * usd_per_h,
    )
