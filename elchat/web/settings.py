"""What a server allows, in one place."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from elchat import paths


@dataclass(frozen=True)
class WebSettings:
    """Limits and identity of one server.

    Attributes:
        model_id: name the API gives to the loaded model.
        fingerprint: changes whenever the same seed could give another text.
        hosts: lower-case names a request's Host header may carry (no port; IPv6 in brackets).
        allows_any_ip: Host may also be any IP address: it listens on every interface, and an
            address, unlike a name, cannot be rebound to this machine.
        port: names the cookie, because browsers share cookies between ports.
        token: asked of every client; None only where just this machine can connect.
        max_body_bytes: of one request; larger is refused before parsing.
        max_import_bytes: the same for a file of conversations.
        max_messages, max_chars: of one conversation and one message.
        max_choices: upper bound of `n`.
        max_prompts: prompts in one request to /v1/completions.
        body_timeout_s: a client that sends its request more slowly is cut.
        send_timeout_s: a client that reads nothing for this long loses its answer.
        ping_s: silence after which a stream carries a comment.
        viewer_timeout_s: an answer of the page that nobody watches is stopped after this.
        ring_s: how long a finished answer can be followed again.
        flush_s: shortest time between two updates of the page.
        data_dir: where conversations go when they are kept.
        saves_new: keep new conversations on disk.
    """

    model_id: str = "elchat"
    fingerprint: str = "fp_0"
    hosts: frozenset[str] = frozenset({"localhost", "127.0.0.1", "[::1]"})
    allows_any_ip: bool = False
    port: int = 8000
    token: str | None = None
    max_body_bytes: int = 1_000_000
    max_import_bytes: int = 32_000_000
    max_messages: int = 500
    max_chars: int = 32_000
    max_choices: int = 8
    max_prompts: int = 256
    body_timeout_s: float = 20.0
    send_timeout_s: float = 30.0
    ping_s: float = 15.0
    viewer_timeout_s: float = 20.0
    ring_s: float = 300.0
    flush_s: float = 1 / 15
    data_dir: Path = field(default_factory=lambda: paths.home() / "web")
    saves_new: bool = False
