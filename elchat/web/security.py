"""Who may talk to the server: one ASGI middleware, checked in this order.

1. Host: the only trace a page that rebinds its own name to this machine leaves.
2. Sec-Fetch-Site and Origin: another page in the same browser, even on another local port.
3. Content-Type: what a form or a no-cors fetch cannot send.
4. The token, where others could reach us.
5. The size and the pace of the body, before anything parses it.

Every answer, refusals too, leaves with the security headers. There is no CORS at all.
"""

from __future__ import annotations

import asyncio
import hashlib
import ipaddress
import json
import logging
import re
import secrets
from collections.abc import Iterable
from http.cookies import CookieError, SimpleCookie

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from elchat.web.errors import ApiError, bug
from elchat.web.settings import WebSettings

log = logging.getLogger("elchat.web")

CSP = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "manifest-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types elchat",
    )
)
HEADERS = {
    "content-security-policy": CSP,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
}
OPEN_PATHS = re.compile(r"/|/static/.*|/health|/api/sesion|/favicon\.ico|/documentacion")
PRIVATE = ("/api", "/v1", "/stats")
DRAIN_BYTES = 16_000_000
REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")


class Guard:
    """The middleware."""

    def __init__(self, app: ASGIApp, settings: WebSettings) -> None:
        self.app = app
        self.settings = settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return
        headers = [(k.decode("latin-1"), v.decode("latin-1")) for k, v in scope["headers"]]
        guarded_send = _with_headers(send, scope["path"], _request_id(headers))
        try:
            self._check(scope, headers)
            body = await self._read_body(scope, headers, receive)
            _check_unicode(body)
        except ApiError as error:
            await error.response()(scope, receive, guarded_send)
            return
        except _ClientGoneError:
            return
        await self._run(scope, _replay(body, receive), guarded_send)

    async def _run(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The app; a bug of ours is still an answer in our shape."""
        is_started = False

        async def watched(message: Message) -> None:
            nonlocal is_started
            is_started = True
            await send(message)

        try:
            await self.app(scope, receive, watched)
        except Exception as error:
            log.error("fallo interno en %s", scope["path"], exc_info=error)
            if is_started:
                raise
            await bug().response()(scope, receive, send)

    def _check(self, scope: Scope, headers: list[tuple[str, str]]) -> None:
        host = _single(headers, "host")
        if not self._is_our_host(host):
            raise ApiError(
                403,
                "Este servidor no atiende a ese nombre (cabecera Host): usa la dirección que "
                "imprimió `elchat serve`.",
                code="host_not_allowed",
            )
        assert host is not None
        _check_origin(headers, host, is_page=scope["path"] == "/")
        if scope["method"] in ("POST", "PUT", "PATCH"):
            _check_content_type(headers)
        if not OPEN_PATHS.fullmatch(scope["path"]):
            self._check_token(headers)

    def _is_our_host(self, host: str | None) -> bool:
        name = _host_name(host)
        if name is None:
            return False
        if name in self.settings.hosts:
            return True
        return self.settings.allows_any_ip and _is_ip(name)

    def _check_token(self, headers: list[tuple[str, str]]) -> None:
        token = self.settings.token
        if token is None:
            return
        given = _values(headers, "authorization")
        is_bearer = len(given) == 1 and given[0][:7].lower() == "bearer "
        if is_bearer and same_secret(given[0][7:].strip(), token):
            return
        cookie = _cookie(headers, cookie_name(self.settings))
        if cookie is not None and same_secret(cookie, cookie_value(token)):
            return
        raise ApiError(
            401,
            "Falta la clave o no es la de este servidor. Abre el enlace que imprimió "
            "`elchat serve`, o manda «Authorization: Bearer CLAVE».",
            code="invalid_api_key",
            headers={"WWW-Authenticate": "Bearer"},
        )

    async def _read_body(
        self, scope: Scope, headers: list[tuple[str, str]], receive: Receive
    ) -> bytes:
        """The whole body: nothing behind this line waits for a slow client."""
        is_import = scope["path"] == "/api/importar"
        limit = self.settings.max_import_bytes if is_import else self.settings.max_body_bytes
        declared = _values(headers, "content-length")
        is_huge = bool(declared) and declared[0].isdecimal() and int(declared[0]) > DRAIN_BYTES * 4
        try:
            if is_huge:
                raise _too_large(limit)
            return await asyncio.wait_for(_collect(receive, limit), self.settings.body_timeout_s)
        except asyncio.TimeoutError:
            raise ApiError(
                408, "La petición tardó demasiado en llegar.", headers={"Connection": "close"}
            ) from None


class _ClientGoneError(Exception):
    """The client left before its request was whole."""


def cookie_name(settings: WebSettings) -> str:
    """Per port: browsers share cookies between the ports of one machine."""
    return f"elchat_{settings.port}"


def cookie_value(token: str) -> str:
    """What the cookie carries: whoever sees it learns nothing about the token."""
    return hashlib.sha256(f"elchat-cookie/1:{token}".encode()).hexdigest()


def same_secret(given: str, expected: str) -> bool:
    """Compare in constant time, whatever the lengths."""
    digests = [
        hashlib.sha256(text.encode("utf-8", "replace")).digest() for text in (given, expected)
    ]
    return secrets.compare_digest(*digests)


async def _collect(receive: Receive, limit: int) -> bytes:
    """Read the body; past the limit keep reading for a while without keeping it.

    A client that is still sending when the connection closes sees a reset instead of the answer.
    """
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise _ClientGoneError
        part = message.get("body", b"")
        size += len(part)
        if size <= limit:
            parts.append(part)
        is_last = not message.get("more_body", False)
        if size > limit and (is_last or size > limit + DRAIN_BYTES):
            raise _too_large(limit)
        if is_last:
            return b"".join(parts)


def _check_unicode(body: bytes) -> None:
    r"""Refuse `"\ud800"` anywhere: half a character passes every parser and breaks any encoder."""
    if b"\\ud" not in body.lower():
        return
    try:
        json.dumps(json.loads(body), ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise ApiError(
            400,
            "El texto contiene caracteres que no son Unicode válido (sustitutos sueltos).",
            code="invalid_json",
        ) from None
    except (ValueError, RecursionError):
        return  # the route says it better


def _too_large(limit: int) -> ApiError:
    return ApiError(
        413,
        f"La petición es demasiado grande: como mucho {limit} bytes.",
        code="request_too_large",
        headers={"Connection": "close"},
    )


def _replay(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives the body once and then what really comes (a disconnection)."""
    is_given = False

    async def replayed() -> Message:
        nonlocal is_given
        if not is_given:
            is_given = True
            return {"type": "http.request", "body": body, "more_body": False}
        return await receive()

    return replayed


def _check_origin(headers: list[tuple[str, str]], host: str, *, is_page: bool) -> None:
    sites = _values(headers, "sec-fetch-site")
    origins = _values(headers, "origin")
    is_foreign_site = any(site.lower() not in ("same-origin", "none") for site in sites)
    own = {f"http://{host.lower()}", f"https://{host.lower()}"}
    is_foreign_origin = any(origin.lower() not in own for origin in origins)
    if is_page and not origins and _is_navigation(headers):
        return  # a link on another page may lead to ours
    if is_foreign_site or is_foreign_origin:
        raise ApiError(
            403,
            "Otra página del navegador no puede usar este servidor.",
            code="origin_not_allowed",
        )


def _is_navigation(headers: list[tuple[str, str]]) -> bool:
    mode, target = _values(headers, "sec-fetch-mode"), _values(headers, "sec-fetch-dest")
    return mode == ["navigate"] and target == ["document"]


def _check_content_type(headers: list[tuple[str, str]]) -> None:
    kind = _values(headers, "content-type")
    if len(kind) != 1 or kind[0].split(";")[0].strip().lower() != "application/json":
        raise ApiError(
            415, "La petición debe llevar «Content-Type: application/json».", code="content_type"
        )


def _host_name(host: str | None) -> str | None:
    """The name in a Host header, without its port; None if it is malformed."""
    found = re.fullmatch(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(:[0-9]{1,5})?", host or "")
    return found[1].lower() if found else None


def _is_ip(name: str) -> bool:
    try:
        ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return False
    return True


def _single(headers: list[tuple[str, str]], name: str) -> str | None:
    values = _values(headers, name)
    return values[0] if len(values) == 1 else None


def _values(headers: Iterable[tuple[str, str]], name: str) -> list[str]:
    return [value for key, value in headers if key == name]


def _cookie(headers: list[tuple[str, str]], name: str) -> str | None:
    for value in _values(headers, "cookie"):
        try:
            found = SimpleCookie(value).get(name)
        except CookieError:
            continue
        if found is not None:
            return found.value
    return None


def _request_id(headers: list[tuple[str, str]]) -> str:
    given = _single(headers, "x-request-id")
    is_good = given is not None and REQUEST_ID.fullmatch(given)
    return given if is_good and given else f"req_{secrets.token_hex(16)}"


def _with_headers(send: Send, path: str, request_id: str) -> Send:
    extra = {**HEADERS, "x-request-id": request_id}
    if path.startswith(PRIVATE):
        extra["cache-control"] = "no-store"

    async def wrapped(message: Message) -> None:
        if message["type"] == "http.response.start":
            raw = list(message.get("headers", []))
            present = {key.lower() for key, _ in raw}
            raw += [
                (key.encode(), value.encode("latin-1"))
                for key, value in extra.items()
                if key.encode() not in present
            ]
            message = {**message, "headers": raw}
        await send(message)

    return wrapped
