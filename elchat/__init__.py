"""elchat: Spanish text in, a small chat model of one's own out."""

__version__ = "0.1.0"
