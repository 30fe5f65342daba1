"""EleutherAI's `lm_eval` with the model "elchat" registered; takes the same words.

python -m scripts.lm_eval --model elchat --model_args path=FOLDER --tasks xnli_es_spanish_bench
"""

from __future__ import annotations

import sys


def main(argv: list[str] | None = None) -> int:
    """Run the harness's own command line; `argv` stands for the process's words."""
    try:
        from lm_eval.__main__ import cli_evaluate
    except ImportError:
        print(
            "Error: falta lm-evaluation-harness: instálalo con pip install 'elchat[lm-eval]'.",
            file=sys.stderr,
        )
        return 1
    import elchat.lm_eval_adapter  # noqa: F401  registers the model

    if argv is not None:
        sys.argv = [sys.argv[0], *argv]
    cli_evaluate()
    return 0


if __name__ == "__main__":
    sys.exit(main())
