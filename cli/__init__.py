"""Control plane: starts, watches and stops runs. Never imports torch."""
