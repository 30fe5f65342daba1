"""Serve a model: the page, and an API compatible with OpenAI's.

    python -m scripts.chat_web [RUN | FOLDER | FILE.gguf | BASE] [--host 127.0.0.1] [--puerto 8000]

Only this machine can connect by default. Any other address asks every client for a key, which is
written once to a file that only the user can read. The first Ctrl-C lets answers end, the second
does not.
"""

from __future__ import annotations

import argparse
import errno
import hashlib
import ipaddress
import logging
import os
import secrets
import socket
import sys
from pathlib import Path
from typing import get_args

from elchat import __version__, paths, runs
from elchat.autonomy import store
from elchat.engine import Engine, Weights, find_model, load_engine
from elchat.errors import ConfigError, ElchatError
from elchat.scheduler import Scheduler
from elchat.web.app import create_app
from elchat.web.page_moods import PageMoods
from elchat.web.server import make_server
from elchat.web.settings import WebSettings
from scripts.arguments import Parser, tell

DEFAULT_PORT = 8000
LOOPBACK = ("localhost", "127.0.0.1", "::1")
WILDCARDS = ("0.0.0.0", "::")
PORTS_TRIED = 20
# Of each file of weights: enough to tell two models apart without reading them whole.
HASHED_PIECES, HASHED_BYTES = 64, 65_536


def main(argv: list[str] | None = None) -> int:
    """Serve until Ctrl-C."""
    arguments = parse(argv)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    try:
        serve(arguments)
    except ElchatError as error:
        return tell(error)
    except KeyboardInterrupt:
        return 130
    return 0


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Words of the command line."""
    parser = Parser(
        "chat_web", "Sirve un modelo en una página y una API compatible con la de OpenAI."
    )
    parser.add_argument("model", nargs="?", help="ejecución, carpeta, GGUF o modelo base")
    parser.add_argument("--host", default="127.0.0.1", help="dirección en la que escucha")
    parser.add_argument("--puerto", type=int, help="por omisión el 8000 o el siguiente libre")
    parser.add_argument("--nombre", action="append", default=[], help="otro nombre de este equipo")
    parser.add_argument("--guardar", action="store_true", help="guardar las conversaciones")
    parser.add_argument("--contexto", type=int, help="fichas que recuerda")
    parser.add_argument(
        "--pesos", default="auto", choices=get_args(Weights), help="precisión en memoria"
    )
    parser.add_argument("--filas", type=int, default=4, help="respuestas a la vez")
    parser.add_argument("--cola", type=int, default=16, help="peticiones que esperan")
    return parser.parse_args(argv)


def serve(arguments: argparse.Namespace) -> None:
    """Load, listen, tell, serve.

    Raises:
        ElchatError: no such model, an address in use, a key file that cannot be written, a number
            that makes no sense.
    """
    check_numbers(arguments)
    sock, port = bind(arguments.host, arguments.puerto)
    token = None if is_loopback(arguments.host) else token_for_network()
    print("Cargando el modelo…", file=sys.stderr, flush=True)
    path = find_model(arguments.model or runs.find(None).id)
    engine = load_engine(path, context_tokens=arguments.contexto, weights=arguments.pesos)
    scheduler = Scheduler(engine, max_rows=arguments.filas, max_queue=arguments.cola)
    try:
        settings = WebSettings(
            model_id=engine.name,
            fingerprint=fingerprint(engine, path),
            hosts=host_names(arguments.host, arguments.nombre),
            allows_any_ip=arguments.host in WILDCARDS,
            port=port,
            token=token,
            saves_new=arguments.guardar,
        )
        autonomy = store.load(path, engine.config)
        moods = PageMoods(autonomy) if autonomy.mood is not None else None
        app = create_app(scheduler, settings, moods)
        announce(arguments.host, port, token, engine.name)
        make_server(app).run(sockets=[sock])
    finally:
        scheduler.close()
        sock.close()


def check_numbers(arguments: argparse.Namespace) -> None:
    """Refuse what the engine could not work with.

    Raises:
        ConfigError: which word, and from where on it makes sense.
    """
    rules = (("--contexto", arguments.contexto, 64), ("--filas", arguments.filas, 1))
    for name, value, least in (*rules, ("--cola", arguments.cola, 0)):
        if value is not None and value < least:
            raise ConfigError(f"{name} vale {value} y debe ser {least} o más.")
    if arguments.puerto is not None and not 0 <= arguments.puerto <= 65535:
        raise ConfigError(f"--puerto vale {arguments.puerto} y debe estar entre 0 y 65535.")


def bind(host: str, port: int | None) -> tuple[socket.socket, int]:
    """Take the port before the model loads: a mistake is told at once.

    Raises:
        ConfigError: the address is not of this machine, or the port is taken.
    """
    wanted = [port] if port is not None else range(DEFAULT_PORT, DEFAULT_PORT + PORTS_TRIED)
    try:
        family, _, _, _, address = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0]
    except OSError:
        raise ConfigError(f"No existe la dirección «{host}».") from None
    for number in wanted:
        sock = socket.socket(family, socket.SOCK_STREAM)
        if os.name != "nt":
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind((address[0], number))
        except OSError as error:
            sock.close()
            if error.errno == errno.EADDRINUSE and port is None:
                continue
            raise _cannot_bind(host, number, error) from None
        return sock, sock.getsockname()[1]
    raise ConfigError(
        f"Los puertos {DEFAULT_PORT} a {DEFAULT_PORT + PORTS_TRIED - 1} están ocupados: "
        "elige otro con --puerto."
    )


def _cannot_bind(host: str, port: int, error: OSError) -> ConfigError:
    code = error.errno
    if code == errno.EADDRINUSE:
        return ConfigError(f"El puerto {port} está ocupado: elige otro con --puerto.")
    if code == errno.EADDRNOTAVAIL:
        return ConfigError(f"«{host}» no es una dirección de este equipo.")
    if code == errno.EACCES:
        return ConfigError(f"El puerto {port} necesita permisos: elige uno mayor que 1023.")
    return ConfigError(f"No se puede escuchar en {host}:{port}: {error}.")


def is_loopback(host: str) -> bool:
    """Only this machine reaches it."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def host_names(host: str, more: list[str]) -> frozenset[str]:
    """Names a browser may use for this server."""
    names = {"localhost", "127.0.0.1", "[::1]", *(name.lower() for name in more)}
    if host not in WILDCARDS:
        names.add(f"[{host}]" if ":" in host else host.lower())
    if not is_loopback(host):
        names.add(socket.gethostname().lower())
    return frozenset(names)


def token_for_network() -> str:
    """The key others must give: kept between runs, so that open pages go on working.

    Raises:
        ConfigError: its file cannot be written.
    """
    path = paths.home() / "web" / "clave"
    try:
        if path.exists():
            kept = path.read_text(encoding="ascii").strip()
            if len(kept) >= 32:
                os.chmod(path, 0o600)
                return kept
        path.parent.mkdir(parents=True, exist_ok=True)
        token = secrets.token_urlsafe(32)
        path.unlink(missing_ok=True)
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "w", encoding="ascii") as file:
            file.write(token + "\n")
    except (OSError, UnicodeError) as error:
        raise ConfigError(f"No se puede guardar la clave en {path}: {error}.") from None
    return token


def fingerprint(engine: Engine, path: Path) -> str:
    """Changes with the model, its precision and our version: same print, same seed, same text."""
    files = [path] if path.is_file() else sorted(path.glob("*.safetensors"))
    digest = hashlib.sha256(f"{__version__}:{engine.weights}:{engine.is_compiled}".encode())
    for file in files:
        size = file.stat().st_size
        digest.update(f"{file.name}:{size}".encode())
        with open(file, "rb") as handle:
            for start in range(0, size, max(1, size // HASHED_PIECES)):
                handle.seek(start)
                digest.update(handle.read(HASHED_BYTES))
    return f"fp_{digest.hexdigest()[:16]}"


def announce(host: str, port: int, token: str | None, name: str) -> None:
    """Print where it is, and who can reach it."""
    shown = "127.0.0.1" if host in WILDCARDS else host
    shown = f"[{shown}]" if ":" in shown else shown
    address = f"http://{shown}:{port}"
    print(f"elchat {__version__} con «{name}».\n")
    if token is None:
        print(f"  Página  {address}/\n  API     {address}/v1   (base_url; la clave da igual)\n")
        print("Solo este equipo puede conectarse.", end=" ")
    else:
        where = Path(paths.home() / "web" / "clave")
        print(f"  Página  {address}/#t={token}\n  API     {address}/v1   (clave: en {where})\n")
        everyone = "Cualquiera de la red" if host in WILDCARDS else f"Quien alcance {host}"
        if host in WILDCARDS and (own := lan_address()) is not None:
            print(f"  Desde el móvil u otro equipo de la red: http://{own}:{port}/#t={token}\n")
        print(f"{everyone} que tenga la clave puede conectarse; sin cifrar (http).", end=" ")
    print("Ctrl-C para cerrar.", flush=True)


def lan_address() -> str | None:
    """This machine's address in its network, as the system would choose it; nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # reserved for documentation: no such machine
        except OSError:
            return None
        return str(probe.getsockname()[0])


if __name__ == "__main__":
    sys.exit(main())
