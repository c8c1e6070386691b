"""Networks and images of the user: find the code of a Python name, copy it, and call it."""
