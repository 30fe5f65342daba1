"""A finished model for the rest of the world: Hugging Face, GGUF, Ollama; each read back."""
