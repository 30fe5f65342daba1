"""Spanish of our own: the right sentence against one with a single mistake.

Five sets of minimal pairs written for elchat, CC0. A pair is right when the model finds the good
sentence likelier as a whole (as BLiMP, Warstadt et al. 2020, arXiv 1912.00582).
"""

from __future__ import annotations

from tasks.common import Data, Task, minimal_pairs

TITLES = {
    "acentos_es": "Acentos y eñes",
    "signos_es": "Signos de apertura ¿ ¡",
    "concordancia_es": "Concordancia de género y número",
    "voseo_es": "Voseo y tuteo coherentes",
    "falsos_amigos_es": "Falsos amigos del inglés",
}

TASKS = tuple(
    Task(
        name=name,
        version=1,
        title_es=title,
        kind="multiple_choice",
        metric="acc",
        random=1 / 2,
        source="elchat",
        licence="CC0-1.0",
        language="es",
        data=Data(files=(f"{name}.jsonl",), is_own=True),
        make_items=minimal_pairs,
        groups=("propias",),
    )
    for name, title in TITLES.items()
)
