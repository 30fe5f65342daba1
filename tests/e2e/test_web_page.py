"""The page in headless Chromium, from the first message to the last key."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest

from elchat.hooks import Decision
from elchat.web.settings import WebSettings
from tests import toys
from tests.e2e.xss import XSS
from tests.web_fakes import FakeMoods, FakeScheduler, Running, Script, running

browser_tools = pytest.importorskip("tests.e2e.browser")
from tests.e2e.browser import (  # noqa: E402
    check_accessible,
    check_fits,
    launch,
    open_page,
    shoot,
    until,
    visit,
)

ANSWER = """La lluvia nace del **ciclo del agua**:

1. El sol evapora el agua de mares y ríos.
2. El vapor sube, se enfría y se condensa en *nubes*.
3. Las gotas crecen hasta que caen.

| estación | mm |
|:--|--:|
| Otoño | 82 |
| Invierno | 64 |

```python
def lluvia(nubes: int) -> str:
    # cuenta gotas
    return "mucha" if nubes > 3 else "poca"
```

> El agua siempre vuelve. Más en [la enciclopedia](https://es.wikipedia.org/wiki/Lluvia).
"""


def script(request: Any) -> Script:
    """The last message chooses how the model behaves."""
    text = toys.tokenizer("smollm").decode(request.ids).rsplit("user\n", 1)[-1]
    if request.hook is not None and request.params.logprobs is not None:
        mood = "sol" if request.hook.values[0] > 0.5 else "nube"
        return Script(("Hoy ", "veo ", "un ", mood, "."), pause_s=0.01)
    if "CALLA" in text and not request.hook.must_answer:
        return Script(
            (), finish="silent", decision=Decision("silent", 0.34, 0.12, 0.5, "cansancio")
        )
    if "ROMPE" in text:
        return Script(("Uno ", "dos "), crash_at=1)
    if "LENTO" in text:
        return Script(tuple(f"palabra {i} " for i in range(2000)), pause_s=0.02)
    if "LARGO" in text:
        return Script(tuple(f"Párrafo {i}.\n\n" for i in range(120)), pause_s=0.02)
    if "XSS" in text:
        return Script(tuple(re.findall(r".{1,9}", "\n\n".join(XSS), re.DOTALL)))
    if "LEYENDO" in text:
        return Script(("Ya.",), prefill_s=1.5)
    return Script(tuple(re.findall(r"\S+\s*|\s+", ANSWER)), pause_s=0.004)


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[Running]:
    settings = WebSettings(data_dir=tmp_path_factory.mktemp("web"), model_id="prueba")
    with running(FakeScheduler(script), settings, FakeMoods()) as it:
        yield it


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with launch("--host-resolver-rules=MAP evil.test 127.0.0.1") as (browser, playwright):
        browser.devices = playwright.devices
        yield browser


@pytest.fixture(autouse=True)
def _clean(server: Running) -> None:
    with server.client() as client:
        client.delete("/api/conversaciones")


DONE = ".turno.elchat:last-child:not(.viva) .acciones"


def send(page: Any, text: str, *, waits: bool = True) -> None:
    page.fill("#texto", text)
    page.click("#enviar")
    if waits:
        page.wait_for_selector(f".turno.usuario:has-text('{text}') + .elchat:not(.viva) .acciones")


def last_answer(page: Any) -> str:
    return page.locator(".turno.elchat .cuerpo").last.text_content()


def test_send_stream_and_find_it_after_a_reload(server: Running, chromium: Any):
    with visit(chromium, server.url) as page:
        shoot(page, "ancho-1-vacia")
        check_accessible(page, "vacía")
        send(page, "¿Por qué llueve?", waits=False)
        page.wait_for_selector(".viva .bloque")
        assert page.locator("#parar").is_visible()
        assert page.text_content("#anuncio") == "elchat está respondiendo"
        shoot(page, "ancho-2-escribiendo")
        page.wait_for_selector(DONE)
        until(page, "document.querySelector('#anuncio').textContent.includes('palabras')")
        assert page.text_content("#titulo") == "¿Por qué llueve?"
        assert page.locator(".cuerpo ol li").count() == 3
        assert page.locator(".codigo .k").count() > 0
        streamed = page.inner_html(".turno.elchat .cuerpo")
        shoot(page, "ancho-3-completa")
        check_accessible(page, "completa")
        page.reload()
        page.wait_for_selector(DONE)
        assert page.inner_html(".turno.elchat .cuerpo") == streamed
        page.click("#nueva")
        page.wait_for_selector("#vacio:not([hidden])")
        page.click("#conversaciones a")
        page.wait_for_selector(DONE)
        assert "ciclo del agua" in last_answer(page)


def test_stop_and_go_on(server: Running, chromium: Any):
    with visit(chromium, server.url) as page:
        send(page, "LENTO", waits=False)
        page.wait_for_selector(".viva .bloque")
        took = page.evaluate(
            """async () => {
                const start = performance.now();
                document.querySelector('#parar').click();
                while (document.querySelector('.viva')) await new Promise(requestAnimationFrame);
                return performance.now() - start;
            }"""
        )
        assert took < 1000
        server.scheduler.wait_idle(1)
        assert "Parado." in page.text_content(".nota")
        shoot(page, "ancho-4-parada")
        before = last_answer(page)
        page.click(".nota button")
        page.wait_for_selector(".viva")
        page.keyboard.press("Escape")
        page.wait_for_selector(DONE)
        assert last_answer(page).startswith(before.strip()[:40])


def test_regenerate_edit_and_versions(server: Running, chromium: Any):
    with visit(chromium, server.url) as page:
        send(page, "Primera pregunta")
        page.click("[aria-label='Otra versión']")
        page.wait_for_selector(".elchat .versiones:has-text('2/2')")
        page.click(".elchat [aria-label='Versión anterior']")
        page.wait_for_selector(".elchat .versiones:has-text('1/2')")
        page.hover(".turno.usuario")
        page.click("[aria-label='Editar el mensaje']")
        page.fill(".edicion", "Segunda pregunta")
        shoot(page, "ancho-5-editando")
        check_accessible(page, "editando")
        page.keyboard.press("Control+Enter")
        page.wait_for_selector(".usuario .versiones:has-text('2/2')")
        page.wait_for_selector(DONE)
        assert page.text_content(".texto-usuario") == "Segunda pregunta"
        page.focus(".usuario .versiones button")
        page.keyboard.press("ArrowLeft")
        page.wait_for_selector(".texto-usuario:has-text('Primera pregunta')")


def test_reload_in_the_middle_of_an_answer(server: Running, chromium: Any):
    with visit(chromium, server.url) as page:
        send(page, "LENTO", waits=False)
        page.wait_for_selector(".viva .bloque")
        page.wait_for_timeout(300)
        page.reload()
        page.wait_for_selector(".viva .bloque")
        first = page.evaluate("document.querySelector('.viva .cuerpo').textContent.length")
        page.wait_for_timeout(400)
        assert page.evaluate("document.querySelector('.viva .cuerpo').textContent.length") > first
        assert last_answer(page).startswith("palabra 0 palabra 1 ")
        page.click("#parar")
        page.wait_for_selector(DONE)


def test_search_rename_delete_and_undo(server: Running, chromium: Any):
    with visit(chromium, server.url) as page:
        for text in ("Háblame del café", "Otra cosa"):
            page.click("#nueva")
            send(page, text)
        page.keyboard.press("Control+k")
        page.keyboard.type("cafe")
        page.wait_for_selector("#conversaciones li:only-child mark")
        shoot(page, "ancho-6-buscar")
        check_accessible(page, "buscar")
        page.keyboard.press("ArrowDown")
        page.keyboard.press("F2")
        page.wait_for_selector("#dialogo[open]")
        shoot(page, "ancho-7-dialogo")
        check_accessible(page, "diálogo")
        page.fill("#dialogo input", "Mi café")
        page.keyboard.press("Enter")
        page.wait_for_selector("#conversaciones .nombre:has-text('Mi café')")
        page.keyboard.press("Delete")
        page.wait_for_selector("#tostada button")
        assert page.locator("#conversaciones li").count() == 0
        page.click("#tostada button")
        page.wait_for_selector("#conversaciones .nombre:has-text('Mi café')")
        page.fill("#buscar", "")
        until(page, "document.querySelectorAll('#conversaciones li').length === 2")


def test_theme_is_kept_and_sliders_speak(server: Running, chromium: Any):
    with visit(chromium, server.url) as page:
        background = "getComputedStyle(document.body).backgroundColor"
        assert page.evaluate(background) == "rgb(251, 250, 247)"
        page.click("#abrir-panel")
        page.click(".tema label:has-text('Oscuro')")
        assert page.evaluate(background) == "rgb(23, 22, 20)"
        page.focus("#m-temperature")
        for _ in range(3):
            page.keyboard.press("ArrowRight")
        assert page.get_attribute("#m-temperature", "aria-valuetext") == "equilibrado, 0,85"
        page.keyboard.press("End")
        assert page.get_attribute("#m-temperature", "aria-valuetext").startswith("imprevisible")
        page.locator("#mandos").scroll_into_view_if_needed()
        shoot(page, "ancho-8-ajustes-oscuro")
        check_accessible(page, "ajustes oscuro")
        page.reload()
        page.wait_for_selector("html[data-lista]")
        assert page.evaluate(background) == "rgb(23, 22, 20)"
        send(page, "Hola")
        assert server.scheduler.requests[-1].params.temperature == 1.5


def test_silence_failure_and_waiting(server: Running, chromium: Any):
    with visit(chromium, server.url) as page:
        send(page, "CALLA")
        assert "(p = 0,34; tope 0,50)" in page.text_content(".silencio p")
        page.click(".silencio button:has-text('Por qué')")
        assert "sacó 0,120" in page.text_content(".porque")
        shoot(page, "ancho-9-silencio")
        check_accessible(page, "silencio")
        page.click("text=Pedir que responda")
        page.wait_for_selector(".elchat .versiones:has-text('2/2')")
        assert "ciclo del agua" in last_answer(page)
        send(page, "ROMPE")
        assert "No queda memoria" in page.text_content(".nota.error")
        shoot(page, "ancho-10-error")
        check_accessible(page, "error")
        send(page, "LEYENDO", waits=False)
        page.wait_for_selector(".fase:has-text('Leyendo la conversación')")
        page.wait_for_selector(DONE)


def test_mood_panel_and_comparison(server: Running, chromium: Any):
    with visit(chromium, server.url) as page:
        page.click("#abrir-panel")
        page.select_option("#humor-nombre", "triste")
        until(page, "document.querySelector('.cuadrado .punto').getAttribute('cx') === '-70'")
        assert page.locator(".mando button[aria-label='Dejar libre: agrado']").is_visible()
        send(page, "Hola")
        until(
            page,
            "document.querySelector('.cuadrado').getAttribute('aria-label').includes('turno 1')",
        )
        assert server.scheduler.requests[-1].hook.values[0] < 0
        assert page.locator(".acciones .aqui").count() == 1
        page.click(".cuadrado", position={"x": 200, "y": 60})
        until(page, "document.querySelector('.cuadrado .punto').getAttribute('cx') > 50")
        page.focus("#humor-valence")
        page.keyboard.press("Home")
        until(page, "document.querySelector('.cuadrado .punto').getAttribute('cx') === '-100'")
        shoot(page, "ancho-11-humor")
        check_accessible(page, "humor")
        page.click("text=Mismos dados, otro humor")
        page.click("#comparador .lleno")
        page.wait_for_selector(".veredicto:has-text('ficha 4')")
        shoot(page, "ancho-12-comparar")
        check_accessible(page, "comparar")
        page.select_option("#humor-comparado-1", "0")
        page.click("#comparador .lleno")
        page.wait_for_selector(".veredicto:has-text('Idénticas: 0 diferencias')")
        page.click(".columna:first-child .enlace")
        page.wait_for_selector(".elchat .versiones:has-text('2/2')")
        assert last_answer(page).strip() == "Hoy veo un nube."


@pytest.mark.parametrize("size", ["móvil", "320 px"])
def test_phone(server: Running, chromium: Any, size: str):
    device = dict(chromium.devices["Pixel 7"]) if size == "móvil" else {}
    name = "movil" if device else "320"
    viewport = {} if device else {"viewport": {"width": 320, "height": 568}, "has_touch": True}
    with visit(chromium, server.url, **device, **viewport, color_scheme="dark") as page:
        check_fits(page)
        shoot(page, f"{name}-1-vacia")
        send(page, "¿Por qué llueve?")
        # The keyboard leaves with the message: the answer is what there is to see.
        assert page.evaluate("document.activeElement.id") != "texto" or not device
        check_fits(page)
        shoot(page, f"{name}-2-completa")
        check_accessible(page, name)
        page.click("#abrir-lista")
        page.wait_for_selector("#hoja-lista[open] #conversaciones li")
        if device:
            check_accessible(page, "lista en el móvil")
        shoot(page, f"{name}-3-lista")
        check_fits(page)
        page.keyboard.press("Escape")
        page.click("#abrir-panel")
        page.wait_for_selector("#hoja-panel[open]")
        if device:
            check_accessible(page, "panel en el móvil")
        shoot(page, f"{name}-4-panel")
        check_fits(page)
        small = page.evaluate(
            """() => [...document.querySelectorAll('button, a, input, select, summary')]
              .filter((n) => n.checkVisibility())
              .filter((n) => !n.matches('[type=radio], .saltar, .cuerpo p a'))
              .map((n) => [n.outerHTML.slice(0, 80), n.getBoundingClientRect()])
              .filter(([, box]) => box.height > 0 && (box.height < 24 || box.width < 24))
              .map(([html]) => html)"""
        )
        assert small == []


def test_keyboard_alone(server: Running, chromium: Any):
    with visit(chromium, server.url) as page:
        for _ in range(12):
            page.keyboard.press("Shift+Tab")
            if page.evaluate("document.activeElement.className") == "saltar":
                break
        assert page.locator(".saltar").bounding_box()["y"] >= 0
        page.keyboard.press("Enter")
        assert page.evaluate("document.activeElement.id") == "texto"
        page.keyboard.type("Hola")
        page.keyboard.press("Shift+Enter")
        page.keyboard.type("mundo")
        page.keyboard.press("Enter")
        page.wait_for_selector(DONE)
        assert page.text_content(".texto-usuario") == "Hola\nmundo"
        assert page.evaluate("document.activeElement.id") == "texto"
        page.keyboard.press("ArrowUp")
        assert page.evaluate("document.activeElement.className") == "edicion"
        page.keyboard.press("Escape")
        assert page.locator(".texto-usuario").count() == 1
        page.keyboard.press("Control+b")
        assert page.locator("#lista").is_hidden()
        page.keyboard.press("Control+b")
        page.keyboard.press("Control+Shift+O")
        page.wait_for_selector("#vacio:not([hidden])")
        seen = set()
        for _ in range(25):
            page.keyboard.press("Tab")
            seen.add(page.evaluate("document.activeElement.id || document.activeElement.className"))
        assert {"nueva", "buscar", "abrir-panel", "enviar"} <= seen


def test_enter_while_composing_does_not_send(server: Running, chromium: Any):
    with visit(chromium, server.url) as page:
        page.fill("#texto", "ñandú")
        page.evaluate(
            """() => document.querySelector('#texto').dispatchEvent(new KeyboardEvent('keydown',
                 {key: 'Enter', isComposing: true, bubbles: true, cancelable: true}))"""
        )
        page.wait_for_timeout(200)
        assert page.locator(".turno").count() == 0


def test_drafts_survive_a_reload_and_a_server_that_is_gone(chromium: Any, tmp_path):
    options = WebSettings(data_dir=tmp_path)
    with running(FakeScheduler(script), options) as own, visit(chromium, own.url) as page:
        page.allowed = ["ERR_CONNECTION_REFUSED", "Failed to load resource"]
        page.fill("#texto", "Un borrador")
        page.wait_for_timeout(450)
        page.reload()
        page.wait_for_selector("html[data-lista]")
        assert page.input_value("#texto") == "Un borrador"
        assert page.locator("#seccion-humor").is_hidden()
        own.server.should_exit = True
        page.wait_for_timeout(700)
        page.click("#enviar")
        page.wait_for_selector("#aviso:has-text('No encuentro el servidor')")
        assert page.input_value("#texto") == "Un borrador"
        assert page.locator("#ejemplos").is_visible()
        shoot(page, "ancho-13-sin-servidor")
        check_accessible(page, "sin servidor")


def test_reading_above_is_left_in_peace(server: Running, chromium: Any):
    with visit(chromium, server.url) as page:
        send(page, "LARGO", waits=False)
        page.wait_for_selector(".viva .bloque:nth-child(30)")
        page.mouse.move(700, 400)
        page.mouse.wheel(0, -300)
        page.wait_for_timeout(100)
        top = page.evaluate("document.querySelector('#mensajes').scrollTop")
        page.evaluate(
            """() => { const p = document.querySelectorAll('.turno.elchat .bloque')[5];
                 getSelection().selectAllChildren(p); }"""
        )
        page.wait_for_selector(DONE)
        assert page.evaluate("document.querySelector('#mensajes').scrollTop") == top
        assert page.evaluate("getSelection().toString().trim()") == "Párrafo 5."
        assert page.locator("#bajar").is_visible()
        shoot(page, "ancho-14-bajar")
        page.click("#bajar")
        page.wait_for_selector("#bajar", state="hidden")
        assert page.evaluate(
            "(() => { const m = document.querySelector('#mensajes');"
            "return m.scrollHeight - m.scrollTop - m.clientHeight < 2 })()"
        )


def test_nothing_in_an_answer_runs_or_leaves(server: Running, chromium: Any):
    with visit(chromium, server.url) as page:
        send(page, "XSS")
        shoot(page, "ancho-15-xss")
        page.reload()
        page.wait_for_selector(DONE)
        assert page.evaluate("window.PWN") is None
        body = ".turno.elchat .cuerpo"
        assert (
            page.locator(f"{body} :is(img, script, iframe, form, style, svg, object)").count() == 0
        )
        hrefs = page.eval_on_selector_all(f"{body} a[href]", "as => as.map(a => a.href)")
        assert all(href.startswith(("http://", "https://", "mailto:")) for href in hrefs)
        assert not [href for href in hrefs if href.startswith(server.url)]
        assert page.locator("#texto").count() == 1


def test_copy_export_import(server: Running, chromium: Any, tmp_path):
    with visit(chromium, server.url, permissions=["clipboard-read", "clipboard-write"]) as page:
        send(page, "¿Por qué llueve?")
        page.click(".codigo .copiar")
        page.wait_for_selector(".copiar:has-text('Copiado')")
        assert page.evaluate("navigator.clipboard.readText()").startswith("def lluvia")
        page.click("[aria-label='Copiar la respuesta']")
        until(
            page, "navigator.clipboard.readText().then((text) => text.startsWith('La lluvia nace'))"
        )
        with page.expect_download() as download:
            page.click("#exportar")
        path = tmp_path / "todo.json"
        download.value.save_as(path)
        assert json.loads(path.read_text())["formato"] == "elchat-conversaciones/1"
        with server.client() as client:
            client.delete("/api/conversaciones")
        open_page(page, server.url)
        page.set_input_files("#archivo", path)
        page.wait_for_selector("#tostada:has-text('1 conversación nueva')")
        page.click("#conversaciones a")
        page.wait_for_selector(DONE)


def test_keep_on_this_computer(server: Running, chromium: Any):
    with visit(chromium, server.url) as page:
        send(page, "Hola")
        assert page.locator("#no-guarda").is_visible()
        page.click("#guardar-esta")
        page.wait_for_selector("#no-guarda", state="hidden")
        assert (server_folder(server) / "conversaciones.db").exists()


def server_folder(server: Running) -> Any:
    return server.server.config.app.user_middleware[0].kwargs["settings"].data_dir


def test_the_key_in_the_link_opens_the_page(chromium: Any, tmp_path):
    token = "k" * 43
    settings = WebSettings(data_dir=tmp_path, token=token)
    with (
        running(FakeScheduler(script), settings) as own,
        visit(chromium, f"{own.url}/#t={token}") as page,
    ):
        assert page.evaluate("location.href") == f"{own.url}/"
        send(page, "Hola")
        page.reload()
        page.wait_for_selector(DONE)


# --- other pages in the same browser -------------------------------------------------------------

ATTACK = """<!doctype html><title>otra</title><script>
window.results = {};
const target = "%s";
async function attempt(name, path, options) {
  try {
    const answer = await fetch(target + path, options);
    window.results[name] = answer.type === "opaque" ? "opaca" : (await answer.text()).slice(0, 60);
  } catch (error) { window.results[name] = "bloqueada"; }
}
(async () => {
  await attempt("leer", "/api/conversaciones", {credentials: "include"});
  await attempt("opaca", "/api/conversaciones", {mode: "no-cors", credentials: "include"});
  await attempt("texto", "/api/turnos", {method: "POST", mode: "no-cors", credentials: "include",
    headers: {"Content-Type": "text/plain"}, body: '{"texto": "robado"}'});
  await attempt("json", "/api/turnos", {method: "POST", credentials: "include",
    headers: {"Content-Type": "application/json"}, body: '{"texto": "robado"}'});
  await attempt("borrar", "/api/conversaciones", {method: "DELETE", credentials: "include"});
  window.done = true;
})();
</script>"""


class Attacker:
    """Another web server of the same machine."""

    def __init__(self, target: str) -> None:
        page = (ATTACK % target).encode()

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(200)
                self.send_header("Content-Type", "text/html")
                self.end_headers()
                self.wfile.write(page)

            def log_message(self, *_: Any) -> None:
                pass

        self.http = HTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.http.serve_forever, daemon=True).start()
        self.port = self.http.server_port


@pytest.mark.parametrize("name", ["localhost", "127.0.0.1", "evil.test"])
def test_another_page_can_neither_read_nor_do(server: Running, chromium: Any, name: str):
    with server.client() as client:
        client.post("/api/turnos", json={"texto": "secreto"})
        before = client.get("/api/conversaciones").json()
    attacker = Attacker(server.url)
    try:
        context = chromium.new_context()
        page = context.new_page()
        page.goto(f"http://{name}:{attacker.port}/")
        until(page, "window.done")
        results = page.evaluate("window.results")
        context.close()
    finally:
        attacker.http.shutdown()
    assert "secreto" not in json.dumps(results)
    assert results["leer"] == results["json"] == results["borrar"] == "bloqueada"
    with server.client() as client:
        after = client.get("/api/conversaciones").json()
    assert [c["id"] for c in after["conversaciones"]] == [c["id"] for c in before["conversaciones"]]


def test_a_name_rebound_to_this_machine_gets_nothing(server: Running, chromium: Any):
    context = chromium.new_context()
    page = context.new_page()
    answer = page.goto(f"http://evil.test:{server.port}/api/conversaciones")
    assert answer.status == 403
    assert "host_not_allowed" in answer.text()
    assert page.goto(f"http://evil.test:{server.port}/").status == 403
    context.close()


def test_200_turns_stay_light(server: Running, chromium: Any):
    messages = [
        {"role": role, "content": f"{role} {i}\n\n" + "palabra " * 60}
        for i in range(100)
        for role in ("user", "assistant")
    ]
    with server.client() as client:
        client.post("/api/importar", json={"conversaciones": [{"messages": messages}]})
    with visit(chromium, server.url) as page:
        page.click("#conversaciones a")
        page.wait_for_selector(DONE)
        assert page.locator(".turno").count() == 50
        page.click("#anteriores")
        until(page, "document.querySelectorAll('.turno').length === 100")
        page.evaluate(
            """() => { window.long = []; new PerformanceObserver((list) =>
                 window.long.push(...list.getEntries().map((e) => e.duration)))
                 .observe({type: 'longtask'}); }"""
        )
        send(page, "LARGO", waits=False)
        page.wait_for_selector(".viva .bloque:nth-child(60)")
        tasks = page.evaluate("window.long")
        page.wait_for_selector(DONE)
        assert sum(1 for task in tasks if task > 150) <= 2, tasks
