"""Build networks from their settings, and load weights into them."""
