"""How much of a conversation is trained on; none of it or all of it is a mistake."""

from __future__ import annotations

from elchat.errors import DataError


def require_mixed(where: str, n_supervised: int, n_tokens: int, n_documents: int = 1) -> None:
    """Refuse conversations with nothing to learn or nothing to answer to.

    Args:
        where: names them in the error.
        n_supervised: tokens that are trained.
        n_tokens: tokens in all.
        n_documents: conversations; the first token of each is never predicted.

    Raises:
        DataError: 0 % or 100 % is supervised.
    """
    if n_supervised == 0:
        raise nothing_to_learn(where)
    if n_supervised >= n_tokens - n_documents:
        raise DataError(
            f"{where}: se aprendería todo, también las preguntas (100 % supervisado); la máscara "
            "no distingue quién habla: revisa los papeles (role) y el formato de conversación."
        )


def nothing_to_learn(where: str) -> DataError:
    """The error for data with no token to predict."""
    return DataError(
        f"{where} no tiene ni un token que aprender (0 % supervisado): hacen falta textos o "
        "respuestas del asistente que no estén vacíos."
    )
