"""Read images from sources, store them in shards on disk, and load them for a network."""
