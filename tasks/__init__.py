"""Evaluation tasks: one file per benchmark."""
