"""What the licence of the base asks of whoever shares a model made from it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from elchat.bases import APACHE_URL, LLAMA_LICENCE_URL

APACHE_FILE = Path(__file__).with_name("LICENSE-APACHE-2.0.txt")
LLAMA_NOTICE = (
    "Llama 3.2 is licensed under the Llama 3.2 Community License, "
    "Copyright © Meta Platforms, Inc. All Rights Reserved.\n"
)


@dataclass(frozen=True)
class Obligations:
    """A licence in what it asks of a copy.

    Attributes:
        spdx: identifier for the model card's metadata.
        credit: line that must be shown, or "".
        points: what the reader must do, in Spanish.
        name_prefix: how the model's name must begin, or "".
        files: text of the files that go with the copy, by name.
    """

    spdx: str
    credit: str
    points: tuple[str, ...]
    name_prefix: str
    files: dict[str, str]


def obligations(licence: str, base_title: str | None, model_folder: Path | None) -> Obligations:
    """Obligations of a licence as the registry names it.

    Args:
        licence: "Apache-2.0", "Llama 3.2 Community License" or anything else.
        base_title: "SmolLM2 135M".
        model_folder: where the base's own licence file may lie.
    """
    if licence.lower().startswith("llama"):
        return _llama(licence, model_folder)
    if licence.lower().replace(" ", "-") == "apache-2.0":
        return _apache(base_title or "el modelo de partida")
    return Obligations(
        spdx="other",
        credit="",
        points=(
            f"Licencia del modelo de partida: {licence}. Elchat no la conoce: léela antes de "
            "compartir esta copia.",
        ),
        name_prefix="",
        files=_own_licence(model_folder),
    )


def _apache(base_title: str) -> Obligations:
    notice = (
        f"Este modelo parte de {base_title} (Apache License 2.0) y ha sido modificado: sus pesos "
        "se siguieron entrenando con elchat con los datos que dice README.md.\n"
    )
    return Obligations(
        spdx="apache-2.0",
        credit="",
        points=(
            f"Parte de {base_title}, con licencia [Apache 2.0]({APACHE_URL}); sus pesos están "
            "modificados (archivo NOTICE.txt).",
            "Quien lo redistribuya debe conservar LICENSE.txt y NOTICE.txt.",
        ),
        name_prefix="",
        files={"LICENSE.txt": APACHE_FILE.read_text(encoding="utf-8"), "NOTICE.txt": notice},
    )


def _llama(licence: str, model_folder: Path | None) -> Obligations:
    files = _own_licence(model_folder)
    copy = (
        "La copia de la licencia va en LICENSE.txt."
        if files
        else f"Falta la copia de la licencia: descárgala de [Meta]({LLAMA_LICENCE_URL}) y ponla "
        "aquí antes de compartir el modelo."
    )
    return Obligations(
        spdx="llama3.2",
        credit="Built with Llama",
        points=(
            f"Licencia: [{licence}]({LLAMA_LICENCE_URL}). {copy}",
            "Hay que mostrar «Built with Llama» donde se ofrezca, y el nombre del modelo debe "
            "empezar por «Llama».",
            "El uso debe respetar la [política de uso aceptable]"
            "(https://www.llama.com/llama3_2/use-policy/) de Meta.",
            "Un producto con más de 700 millones de usuarios al mes necesita permiso de Meta.",
        ),
        name_prefix="Llama-",
        files={**files, "NOTICE.txt": LLAMA_NOTICE},
    )


def _own_licence(folder: Path | None) -> dict[str, str]:
    """The licence file that came with the base, if it is there."""
    found = sorted(folder.glob("LICENSE*")) if folder is not None and folder.is_dir() else []
    return {"LICENSE.txt": found[0].read_text("utf-8", errors="replace")} if found else {}
