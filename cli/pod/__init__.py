"""What runs inside the rented machine: standard library only, Python 3.9 or later."""
