"""From a source's images to shards: examined, deduplicated, written, shown on a page."""
