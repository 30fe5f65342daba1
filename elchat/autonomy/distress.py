"""Messages that are always answered: danger, despair, violence, medical trouble.

A written list of Spanish stems, matched without accents, case or stretched letters. It is meant to
catch too much: a false alarm costs one answer that would have been given anyway. It decides only
that silence is out of the question; it diagnoses nobody.
"""

from __future__ import annotations

import re
import unicodedata

# Each entry is a regular expression over the flattened text, at the start of a word.
CUES: tuple[str, ...] = (
    # wanting to die, hurting oneself
    r"suicid", r"matarme", r"me (quiero|voy a|quisiera) (morir|matar)", r"quier\w+ morir",
    r"morirme", r"quitarme la vida", r"quitarme de (en )?medio", r"acabar con (todo|mi vida)",
    r"(no|ya no) (quiero|puedo) (mas|seguir|vivir)", r"no aguanto", r"no (le )?(encuentro|veo) (el )?sentido",
    r"sin sentido", r"(dejar|ganas) de vivir", r"desaparecer", r"no (quiero )?(estar|existir) (aqui|vivo|viva)",
    r"cortarme", r"corte\w* en (el|los|las|mi|mis)", r"autolesi", r"hacerme dano", r"lastimarme", r"pastillas",
    r"sobredosis", r"tirarme", r"saltar (del|desde|al|por)", r"puente", r"nota de despedida", r"despedirme",
    r"ahorcar", r"colgarme", r"(estarian|estaria|todos) mejor sin mi", r"carga para", r"merezco (vivir|morir)",
    r"muert[oa]", r"no valgo", r"no sirvo", r"odio mi vida", r"mi vida es un",
    # despair, panic, loneliness
    r"desesper", r"angusti", r"ansiedad", r"panico", r"depre(si|)", r"hundid[oa]", r"destrozad[oa]", r"agobi",
    r"llor", r"sol[oa] en (el|este) mundo", r"(tan|muy|completamente) sol[oa]", r"nadie me", r"a nadie (le )?importo",
    r"(estoy|me siento|siento) (muy |tan |fatal|mal|vaci|rot|perdid|atrapad)", r"me siento (muy |tan )?(mal|sol|vaci|inutil)",
    r"vacio", r"no puedo (respirar|dormir|levantarme|moverme|parar)", r"rendirme", r"ya me da igual todo", r"todo me da igual",
    r"no tengo (a )?nadie", r"tengo (mucho |tanto )?miedo", r"(me da|da) (mucho )?miedo", r"aterr", r"asustad", r"temblando",
    r"duelo", r"fallec", r"(se|ha|acaba de|han) muri", r"se (me )?muere", r"perdi (a )?(mi|un|una|el bebe)", r"aborto",
    # violence and abuse
    r"me (pega|pego|golpe|maltrat|viol|insulta|amenaz|persig|sig(ue|uen)|acos|agred|encerr|toca|toco|grita|controla|obliga)",
    r"(le|nos|la|lo|les) (pega|golpe|maltrat|viol|amenaz|esta pegando|estan pegando)", r"maltrat", r"violaci", r"violad", r"violen",
    r"abus", r"acoso", r"acosa", r"secuestr", r"amenaz", r"navaja", r"cuchillo", r"pistola", r"arma", r"dispar", r"tiroteo",
    r"apunal", r"agresi", r"orden de alejamiento", r"matar(lo|la|te|me|nos|los|las| a)", r"me va a matar", r"bullying", r"paliza",
    r"(rob|asalt|atrac)(ar|aron|ando|o|aba)\b", r"ladron", r"intrus", r"entra(r|ndo|do) (alguien )?(en|a) mi casa", r"chantaj", r"trata de personas",
    r"estafa", r"bomba", r"terroris",
    # accidents and danger
    r"auxilio", r"socorro", r"ayud[ae](me|nos)?( por favor)?\b", r"ayuda\b", r"emergencia", r"urgen", r"ambulancia", r"112\b", r"911\b", r"061\b", r"bomber",
    r"policia", r"incendi", r"fuego", r"quema", r"arde\b", r"ardiendo", r"humo", r"explo", r"gas\b", r"fuga", r"accident", r"choca", r"choque", r"atropell",
    r"volc", r"atrapad", r"ahog", r"atragant", r"se (ha )?(cai|cay|trag|toma|bebi|desmay|cort|quem|electrocut|intoxic)", r"caid[oa]\b", r"me (he )?(cai|corte|queme|rompi|roto|intoxi|envenen)",
    r"terremoto", r"inundaci", r"derrumb", r"perdid[oa]\b", r"desaparecid", r"extravi", r"mi hij[oa] no",
    # the body
    r"sangr", r"hemorrag", r"infart", r"ictus", r"derrame", r"corazon", r"pecho", r"respir", r"asfixi", r"convuls", r"epilep", r"desmay", r"inconsc",
    r"no (reacciona|responde|despierta|se despierta|se mueve|respira)", r"fiebre", r"alerg", r"anafil", r"hinch", r"envenen", r"intoxic", r"veneno", r"lejia",
    r"picadura", r"picado", r"mordi", r"mordedura", r"fractur", r"hueso", r"quemadura", r"herid", r"golpe", r"dolor", r"duele", r"vomit", r"mareo", r"maread", r"embaraz",
    r"parto", r"contraccion", r"rompi(o|do)? aguas", r"bebe\b", r"insulina", r"diabet", r"glucosa", r"hipoglu", r"medic", r"hospital", r"paralis", r"no siento",
    r"veo (doble|borroso)", r"ataque", r"crisis", r"sintoma", r"cancer", r"tumor", r"enferm", r"overdose", r"droga", r"abstinencia", r"recaid", r"recaer", r"borrach",
    r"anorexi", r"bulimi", r"atracon", r"no como (nada )?desde", r"no he comido", r"hambre", r"sin comer", r"desahuci", r"en la calle", r"sin techo",
)  # fmt: skip
_PATTERN = re.compile("|".join(rf"\b(?:{cue})" for cue in CUES))


def flatten(text: str) -> str:
    """Lower case, no accents, no stretched letters, single spaces.

    >>> flatten("¡AYÚDAMEEEE  ya!")
    '¡ayudamee ya!'
    """
    plain = unicodedata.normalize("NFD", text.lower())
    plain = "".join(c for c in plain if unicodedata.category(c) != "Mn")
    plain = re.sub(r"(.)\1{2,}", r"\1\1", plain)
    return re.sub(r"\s+", " ", plain).strip()


def is_distress(text: str) -> bool:
    """Whether the message must be answered whatever the dice say."""
    flat = flatten(text)
    return bool(_PATTERN.search(flat) or _PATTERN.search(re.sub(r"(.)\1+", r"\1", flat)))
