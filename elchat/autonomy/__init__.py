"""Structural autonomy: learned mood, seeded randomness inside the layers, a right to stay silent.

Read `mood` for what is learned, `conversation` for what a conversation is, `turn` for what the
engine meets, `replay` for the receipt. Everything off is the base model, bit for bit.
"""

from elchat.autonomy.conversation import Autonomy, Conversation
from elchat.autonomy.mood_state import MoodState
from elchat.autonomy.settings import Settings
from elchat.autonomy.store import load, save

__all__ = ["Autonomy", "Conversation", "MoodState", "Settings", "load", "save"]
