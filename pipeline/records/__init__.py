"""What is on disk: paths, how files are written and read, and what each record must hold."""
