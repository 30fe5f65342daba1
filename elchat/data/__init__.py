"""From raw text to packed, resumable training batches."""
