"""elchat-sim: RunPod's REST v2 on this computer, with faults on demand (docs/simulador.md)."""

from .faults import ACCOUNT_KEY, FaultScript, FaultScriptError, load, parse
from .placement import Refusal
from .random_faults import fault_scripts, random_faults
from .simulator import Clock, Simulator
from .virtual_host import Agent, ContainerExit, VirtualPod

__all__ = [
    "ACCOUNT_KEY",
    "Agent",
    "Clock",
    "ContainerExit",
    "FaultScript",
    "FaultScriptError",
    "Refusal",
    "Simulator",
    "VirtualPod",
    "fault_scripts",
    "load",
    "parse",
    "random_faults",
]
