"""Runnable stages: each composes the library and holds no logic of its own."""
