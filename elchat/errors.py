"""The error tree. Each message is one Spanish sentence: what, which value, how to fix it.

ElchatError
├── ConfigError            a key, a value or a file of configuration
├── DataError              text, conversations, shards
├── TokenizerError         vocabulary files, token ids
├── ModelError             weights, architectures, downloads
├── CheckpointError        unreadable, truncated or foreign checkpoints
├── RunError               run folders: names, states, missing runs
├── TrainingError          the loop gave up (non-finite loss, divergence)
├── DiskError              no space left
├── NetworkError           an address did not answer
├── QueueFullError         the engine has all the requests it takes
└── ProviderError          where a run executes
    ├── AuthError          a missing or refused key
    ├── BudgetError        the plan could pass the budget
    ├── NoCapacityError    no machine to rent
    ├── BalanceError       the account has no money left
    └── TransferError      what came over the wire is not what was sent
"""

from __future__ import annotations


class ElchatError(Exception):
    """A failure the user can act on.

    Attributes:
        exit_code: status the process ends with.
        hint: the next command or page to try, or None.
    """

    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint


class ConfigError(ElchatError):
    """A configuration file, key or value is wrong."""

    exit_code = 2


class DataError(ElchatError):
    """Input text or conversations cannot be used."""

    exit_code = 3


class TokenizerError(ElchatError):
    """A vocabulary or a token id cannot be used."""

    exit_code = 3


class ModelError(ElchatError):
    """Model weights are missing, damaged or of an unsupported architecture."""

    exit_code = 4


class CheckpointError(ElchatError):
    """A checkpoint is truncated, altered or belongs to another run."""

    exit_code = 5


class RunError(ElchatError):
    """A run folder is missing, duplicated or in the wrong state."""

    exit_code = 2


class TrainingError(ElchatError):
    """Training stopped because continuing would spoil the model."""

    exit_code = 6


class DiskError(ElchatError):
    """There is not enough free space to go on without losing work."""

    exit_code = 7


class NetworkError(ElchatError):
    """A remote address did not answer."""

    exit_code = 8


class QueueFullError(ElchatError):
    """The engine already has as many waiting requests as it takes."""

    exit_code = 11


class ProviderError(ElchatError):
    """The place where runs execute refused or failed."""

    exit_code = 9


class AuthError(ProviderError):
    """A key is missing or was refused."""

    exit_code = 2


class BudgetError(ProviderError):
    """A plan could pass the budget."""

    exit_code = 10


class NoCapacityError(ProviderError):
    """No machine could be rented."""

    exit_code = 11


class BalanceError(ProviderError):
    """The cloud account has no money left."""

    exit_code = 12


class TransferError(ProviderError):
    """A file arrived damaged or did not arrive."""

    exit_code = 13
