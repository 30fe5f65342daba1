"""A rented machine from the quote to its deletion, and the money it costs."""
