"""Evaluation tasks: one file per benchmark."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from types import MappingProxyType

from tasks.common import Task


def all_tasks() -> Mapping[str, Task]:
    """Every task of this package by name, in alphabetical order."""
    found = {}
    for module in pkgutil.iter_modules(__path__):
        if module.name != "common":
            for task in importlib.import_module(f"tasks.{module.name}").TASKS:
                assert task.name not in found, task.name
                found[task.name] = task
    return MappingProxyType(dict(sorted(found.items())))
