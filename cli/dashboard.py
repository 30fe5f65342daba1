"""The screen of `elchat watch`: curves, figures and the last words of a run, redrawn as it goes."""

from __future__ import annotations

from collections.abc import Callable

from rich.text import Text
from textual.app import App, ComposeResult
from textual.binding import Binding
from textual.containers import Horizontal
from textual.widgets import Footer, Static

from cli import views
from cli.braille import curve
from cli.output import duration, number, percent
from cli.reading import Reading
from elchat.files import format_bytes
from elchat.runs import Run

REFRESH_S = 1.0
LANGUAGES = {"es": "español", "en": "inglés"}
STATE_COLOURS = {"running": "green", "done": "green", "failed": "red", "dead": "red"}


class Curve(Static):
    """A framed curve that fills the room it has; the border says what it is and where it stands."""

    def __init__(self, title: str, *, id: str) -> None:
        super().__init__(id=id)
        self.border_title = title
        self.values: list[float] = []
        self.note = ""

    def show(self, values: list[float], note: str, empty: str) -> None:
        """Draw these values with `note` in the border; `empty` is said while there are none."""
        self.values, self.note = values, note if values else empty
        self.redraw()

    def redraw(self) -> None:
        """Draw again in the room there is now."""
        width, height = self.content_size
        self.border_subtitle = self.note
        self.update(Text("\n".join(curve(self.values, width, height)), no_wrap=True))

    def on_resize(self) -> None:
        self.redraw()


class Dashboard(App[None]):
    """`elchat watch`.

    Args:
        read: gives the run's reading now; called once a second, from this thread.
    """

    ENABLE_COMMAND_PALETTE = False
    BINDINGS = [Binding("q,escape", "quit", "Salir (el entrenamiento sigue)")]  # noqa: RUF012
    CSS = """
    Screen { layout: vertical; }
    #title, #bar { height: 1; padding: 0 1; }
    #title { text-style: bold; }
    #curves { height: 1fr; min-height: 6; }
    Curve { width: 1fr; height: 100%; border: round $primary; padding: 0 1; }
    #figures { height: 3; padding: 0 1; margin: 0; }
    #words { height: 1fr; min-height: 5; border: round $primary; padding: 0 1; }
    """

    def __init__(self, run: Run, read: Callable[[Run], Reading]) -> None:
        super().__init__()
        self._watched, self._read = run, read

    def compose(self) -> ComposeResult:
        yield Static(id="title")
        yield Static(id="bar")
        with Horizontal(id="curves"):
            yield Curve("pérdida", id="loss")
            yield Curve("bits por byte", id="bits")
        yield Static(id="figures")
        yield Static(id="words")
        yield Footer()

    def on_mount(self) -> None:
        self.call_after_refresh(self.refresh_reading)  # once there is room to draw in
        self.set_interval(REFRESH_S, self.refresh_reading)

    def refresh_reading(self) -> None:
        """Read the folder again and show it."""
        if not self.query("#title"):  # leaving
            return
        now = self._read(self._watched)
        self._show_title(now)
        self.query_one("#loss", Curve).show(now.losses, span(now.losses, 3), "sin datos todavía")
        spanish = now.bits_per_byte.get("es") or next(iter(now.bits_per_byte.values()), [])
        self.query_one("#bits", Curve).show(spanish, bits_note(now), "aún no se ha medido")
        self.query_one("#figures", Static).update(Text("\n".join(figures(self._watched, now))))
        self._show_words(now)

    def _show_title(self, now: Reading) -> None:
        colour = STATE_COLOURS.get(now.state, "yellow")
        title = Text(self._watched.id, no_wrap=True, overflow="ellipsis")
        title.append(f"  {views.state_text(now.state, now.status)}", style=colour)
        title.append(f"  {views.stage_text(now.status)}")
        self.query_one("#title", Static).update(title)
        bar = self.query_one("#bar", Static)
        bar.update(progress_bar(now.status.step, now.status.total_steps, bar.content_size.width))

    def _show_words(self, now: Reading) -> None:
        box = self.query_one("#words", Static)
        height = max(box.content_size.height, 1)
        box.border_subtitle = views.next_command(self._watched, now.state)
        if now.trouble:
            box.border_title, lines = "problema", [now.trouble]
        elif now.samples:
            box.border_title = "muestras"
            lines = [line for asked, reply in now.samples for line in (f"» {asked}", f"  {reply}")]
            lines = lines[:height]
        else:
            box.border_title, lines = "registro", now.log[-height:] or ["(vacío)"]
        width = box.content_size.width
        box.update(Text("\n".join(shortened(line, width) for line in lines)))


def shortened(line: str, width: int) -> str:
    """The line in `width` cells: one that wrapped would push the newest off the screen."""
    return line if len(line) <= width else line[: max(width - 1, 0)] + "…"


def progress_bar(step: int, total: int, width: int) -> Text:
    """'━━━━━━────── 12/72' in `width` cells."""
    label = f" {step}/{total}" if total else " —"
    room = max(width - len(label), 0)
    filled = min(room, room * step // total) if total else 0
    bar = Text(no_wrap=True).append("━" * filled, style="green")
    return bar.append("─" * (room - filled), style="dim").append(label)


def bits_note(now: Reading) -> str:
    """'español 1,0312 → 0,9810'; the curve is that language's, the others are in the report."""
    scores = now.bits_per_byte
    language = "es" if scores.get("es") else next(iter(scores), "")
    return f"{LANGUAGES.get(language, language)} {span(scores.get(language, []), 4)}"


def span(values: list[float], digits: int) -> str:
    """'4,100 → 2,667': where a curve began and where it is."""
    ends = dict.fromkeys(number(value, digits) for value in values[:1] + values[-1:])
    return " → ".join(ends)


def figures(run: Run, now: Reading) -> list[str]:
    """Three lines of figures, each in columns that fit 80 cells."""
    status, latest = now.status, now.latest
    is_running = now.state in ("running", "stalled")
    memory = latest.get("memory_mib")
    rows = [
        [
            ("tokens/s", number(status.tokens_per_s)),
            ("MFU", percent(status.mfu)),
            ("falta", duration(status.eta_s) if is_running else "—"),
        ],
        [
            ("memoria", "—" if memory is None else format_bytes(int(memory * 2**20))),
            ("espera de datos", percent(latest.get("data_wait_share"))),
            ("gasto", views.spent_text(run, status)),
        ],
        [
            ("tokens", number(latest.get("tokens"))),
            ("pasos saltados", number(latest.get("skipped"))),
            ("norma del gradiente", number(latest.get("grad_norm"), 2)),
        ],
    ]
    widths = (22, 24, 0)
    return [
        "".join(f"{name}: {value}".ljust(w) for (name, value), w in zip(row, widths, strict=True))
        for row in rows
    ]
