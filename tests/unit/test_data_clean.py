"""Cleaning and duplicates: what is repaired, what is rejected and why, what is left alone."""

import random
import subprocess
import sys

import pytest

from elchat.config import CleaningSection
from elchat.data.clean import Cleaner, describe_counts, drop_boilerplate, normalise, repeated_share
from elchat.data.dedup import EXACT, NEAR, Deduplicator, bands_for
from elchat.errors import DataError

STORY = (
    "La panadería de la esquina abría a las seis, cuando la calle todavía olía a lluvia. "
    "Doña Remedios colocaba las barras en el mostrador y encendía la radio, siempre en la misma "
    "emisora, para escuchar las noticias del pueblo. Los niños pasaban camino de la escuela y "
    "ella les guardaba un bollo de anís. Nadie recordaba un solo día en que hubiera cerrado."
)
POEM = "\n".join(
    [
        "Caminante, son tus huellas",
        "el camino y nada más;",
        "caminante, no hay camino,",
        "se hace camino al andar.",
        "Al andar se hace camino,",
        "y al volver la vista atrás",
        "se ve la senda que nunca",
        "se ha de volver a pisar.",
    ]
)
OFFER = "Haz clic aquí para ver la oferta del día de hoy mismo. "
ENGLISH = (
    "The bakery on the corner opened at six, while the street still smelled of rain. She put "
    "the loaves on the counter and turned on the radio to listen to the morning news of the town."
)


def cleaner(language="es", **options):
    section = CleaningSection.model_validate({"min_chars": 50, **options})
    return Cleaner(section, language)


def test_normalise_repairs_and_keeps_typography():
    assert normalise("EspaÃ±a y el niÃ±o comiÃ³") == "España y el niño comió"
    assert normalise("an\u0303o") == "año"
    assert normalise("a\r\nb\rc\u2028d") == "a\nb\nc\nd"
    assert normalise("so\u00adlu\u200bción\x07\ufeff") == "solución"
    assert normalise("uno   \n\n\n\n\n  dos  ") == "uno\n\n  dos"
    kept = "«Sí», dijo —sin prisa—: “mañana…” 3 × 4 ‘así’\u00a0€"
    assert normalise(kept) == kept
    assert normalise("familia 👩\u200d👧 y e\u200dspacio") == "familia 👩\u200d👧 y espacio"
    assert normalise("roto \ud800 aquí") == "roto \ufffd aquí"


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252", "mac_roman"])
def test_mojibake_of_each_kind_is_repaired(encoding):
    assert normalise(STORY.encode().decode(encoding)) == STORY


def test_healthy_text_is_untouched():
    for text in (STORY, POEM, "¡Ñandú! ¿Güisqui? «Él»… Á—É", "La raíz √2 ≈ 1,41 es irracional"):
        assert normalise(text) == text


def test_good_texts_pass():
    judge = cleaner()
    assert judge.clean(STORY) == STORY
    assert judge.clean(POEM) == POEM
    assert not judge.counts


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("\u200b \n", "vacio"),
        ("Muy corto.", "corto"),
        ("12 45 -- 99 // 3.14 == 77 ++ 1234 " * 5, "no_prosa"),
        ("QWxhZGRpbjpvcGVuIHNlc2FtZQ==" * 8, "no_prosa"),
        ("\n".join(f"Producto número {i}" for i in range(12)), "menu"),
        (
            OFFER * 12,
            "repeticion",
        ),
        (ENGLISH, "idioma"),
    ],
)
def test_bad_texts_are_rejected_with_their_reason(text, reason):
    judge = cleaner()
    assert judge.clean(text) is None
    assert judge.counts == {reason: 1}


def test_filters_can_be_switched_off():
    assert cleaner(min_language_probability=0).clean(ENGLISH) == ENGLISH
    assert cleaner("any").clean(ENGLISH) == ENGLISH
    assert cleaner("en").clean(ENGLISH) == ENGLISH
    assert cleaner("en").clean(STORY) is None
    assert cleaner(max_repeated_share=1.0).clean(OFFER * 12)
    assert cleaner(min_chars=0).clean("Hola, ¿qué tal estás hoy?")


def test_unknown_language_is_refused():
    with pytest.raises(DataError, match="«xx»"):
        cleaner("xx")


def test_repeated_share_by_hand():
    assert repeated_share("uno dos tres\nuno dos tres\ncuatro") == pytest.approx(12 / 30)
    assert repeated_share("a b c d e f g h") == 0
    assert repeated_share("a b c d e a b c d e") == pytest.approx(1 / 6)


def test_boilerplate_lines_go_and_prose_about_them_stays():
    page = f"Aceptar todas las cookies\n{STORY}\nTodos los derechos reservados © 2024\nLeer más"
    assert drop_boilerplate(page) == (STORY, 3)
    prose = "La política de privacidad de un país dice mucho de él, y conviene leerla con calma."
    assert drop_boilerplate(prose) == (prose, 0)
    judge = cleaner()
    assert judge.clean(page) == STORY
    assert judge.boilerplate_lines == 3


def test_counts_in_words():
    judge = cleaner()
    judge.clean("a")
    judge.clean("b")
    judge.clean(ENGLISH)
    assert describe_counts(judge.counts) == "2 demasiado cortos, 1 en otro idioma"


def vary(words, n, seed):
    """Replace n words."""
    rng = random.Random(seed)
    words = list(words)
    for i in rng.sample(range(len(words)), n):
        words[i] = f"otra{i}"
    return " ".join(words)


def test_exact_duplicates_ignore_case_and_spacing():
    seen = Deduplicator(0)
    assert seen.reason(STORY) is None
    assert seen.reason("  " + STORY.upper().replace(" ", "\n")) == EXACT
    assert seen.reason(STORY + " Fin.") is None


def test_near_duplicates_by_similarity():
    words = [f"palabra{i}" for i in range(400)]
    seen = Deduplicator(0.8)
    assert seen.reason(" ".join(words)) is None
    # 3 changed words spoil about 15 of 396 shingles (J ~ 0.93); 120 spoil most of them
    assert seen.reason(vary(words, 3, 1)) == NEAR
    assert seen.reason(vary(words, 120, 2)) is None


def test_bands_reach_the_wanted_recall():
    for similarity in (0.5, 0.7, 0.8, 0.9, 0.95):
        bands = bands_for(similarity)
        assert 128 % bands == 0
        assert 1 - (1 - similarity ** (128 / bands)) ** bands >= 0.9


def test_duplicates_do_not_depend_on_the_process():
    code = (
        "import random\nfrom elchat.data.dedup import Deduplicator\n"
        "rng = random.Random(0); seen = Deduplicator(0.8); out = ''\n"
        "base = [f'w{i}' for i in range(60)]\n"
        "for k in range(60):\n"
        "    words = list(base)\n"
        "    for i in rng.sample(range(60), rng.randint(1, 3)): words[i] = f'x{k}{i}'\n"
        "    found = seen.reason(' '.join(words))\n"
        "    out += {None: '.', 'duplicado': 'e', 'casi_duplicado': 'n'}[found]\n"
        "print(out)"
    )
    results = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": seed, "PATH": "/usr/bin:/bin"},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(results) == 1
    assert {"n", "."} <= set(results.pop())  # pairs on both sides of the threshold
