"""Define what is on disk: every path, how files are written and read, the schema of each record."""
