"""Reports of runs: report.html, report.md and report.json, from one gathering of facts."""

from __future__ import annotations

from pathlib import Path

from elchat.errors import ConfigError
from elchat.files import sha256_file, write_json, write_text
from elchat.report import markdown, page, sections
from elchat.report.facts import FACTS_FILE, Facts, gather, saved
from elchat.report.reading import FolderReader, mapping
from elchat.runs import Run

HTML_FILE, MARKDOWN_FILE, MANIFEST_FILE = "report.html", "report.md", "manifest.json"

__all__ = ["FACTS_FILE", "HTML_FILE", "MARKDOWN_FILE", "Facts", "gather", "write", "write_page"]


def write(run: Run, *, fertility: dict[str, dict[str, int]] | None = None) -> Facts:
    """Write the three files of a run's report, each atomically, and renew manifest.json.

    Args:
        run: finished or not.
        fertility: see `facts.gather`.

    Raises:
        RunError: the run's configuration cannot be read.
        DiskError: no room; what was there stays.
    """
    facts = gather(run, fertility=fertility)
    write_page(run.path / HTML_FILE, sections.render(facts))
    write_text(run.path / MARKDOWN_FILE, page.check_text(markdown.render(facts)))
    write_json(run.path / FACTS_FILE, saved(facts))
    _renew_manifest(run, facts)
    return facts


def write_page(path: Path, html: str) -> Path:
    """Replace an HTML file atomically; return its path."""
    if path.is_dir():
        raise ConfigError(f"--out es una carpeta ({path}): da el nombre de un archivo .html.")
    write_text(path, page.check_text(html))
    return path


def outputs(run: Run) -> dict[str, str]:
    """sha256 of the report's files, by name."""
    names = (HTML_FILE, MARKDOWN_FILE, FACTS_FILE)
    return {name: sha256_file(run.path / name) for name in names if (run.path / name).exists()}


def _renew_manifest(run: Run, facts: Facts) -> None:
    """Keep the hashes true when a report is written again, and the stage finished if it was."""
    write_json(run.path / MANIFEST_FILE, {"files": {**outputs(run), **facts.files}})
    marker = FolderReader(run.path).object("stages/report.json")
    if marker is not None:
        write_json(
            run.path / "stages" / "report.json", {**mapping(marker), "outputs": outputs(run)}
        )
