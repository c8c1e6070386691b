"""Networks and images by a Python name of the user's: its files are found, kept and called."""
