"""A finished folder sent to the hub, to a repository of its user's."""

from __future__ import annotations

import os
from pathlib import Path

import httpx
from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError

from elchat import hub
from elchat.errors import AuthError, ConfigError, ElchatError, NetworkError

DEADLINE_S = 1800.0  # of a worker: its machine may be paid by the hour


def check(repo: str) -> None:
    """Refuse early what could not be published: a name that is none, or no key.

    Raises:
        ConfigError, AuthError: with what to write.
    """
    if not hub.HUB_ID.match(repo):
        raise ConfigError(f"«{repo}» no es un sitio del hub: escribe usuario/nombre.")
    if not get_token():
        raise AuthError(
            f"Falta la clave del hub para publicar en {repo}.",
            hint="Crea una que pueda escribir en https://huggingface.co/settings/tokens y escribe: "
            "export HF_TOKEN=hf_…",
        )


def publish(
    folder: Path, repo: str, *, private: bool = True, deadline_s: float | None = None
) -> str:
    """Upload every file of a folder in one commit; the repository is made if need be.

    Args:
        repo: "user/name"; HF_ENDPOINT and HF_TOKEN are honoured.
        private: of a repository that is made now; one that exists keeps what it is.
        deadline_s: stop waiting after this long.

    Returns:
        Where to see it.

    Raises:
        ConfigError, AuthError: see `check`; or the hub refuses the key.
        NetworkError: the hub does not answer, or not as one.
    """
    check(repo)
    endpoint = os.environ.get("HF_ENDPOINT") or hub.DEFAULT_ENDPOINT
    api = HfApi(endpoint=endpoint)

    def send() -> None:
        api.create_repo(repo, private=private, exist_ok=True)
        api.upload_folder(repo_id=repo, folder_path=folder, commit_message="Publicado con elchat")

    try:
        with hub.no_progress_bars():
            send() if deadline_s is None else hub.within(deadline_s, send)
    except (OSError, httpx.HTTPError, ValueError, LookupError, TypeError) as error:
        raise _refusal(repo, endpoint, error) from None
    return f"{endpoint}/{repo}"


def _refusal(repo: str, endpoint: str, error: Exception) -> ElchatError:
    answer = error.response if isinstance(error, HfHubHTTPError) else None
    status = answer.status_code if answer is not None else 0
    if status in (401, 403, 404):
        return AuthError(
            f"El hub no deja publicar en {repo} ({status}): HF_TOKEN tiene que poder escribir y "
            "el sitio ser tuyo o de tu organización."
        )
    reason = str(status) if status else type(error).__name__
    return NetworkError(
        f"El hub ({endpoint}) no aceptó la publicación en {repo} ({reason}): revisa la conexión "
        "y repite la orden."
    )
