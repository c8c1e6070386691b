"""Images in: sources, shards on disk, and loaders that read them."""
