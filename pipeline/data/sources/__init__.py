"""Where images come from: on disk or made on the spot, listed and read; never downloaded."""
