"""Turn the images of a source into shards: examine, deduplicate, write, show on a page."""
