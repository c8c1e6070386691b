"""Use the user's own networks and images: find the code of a Python name, copy it, and call it."""
