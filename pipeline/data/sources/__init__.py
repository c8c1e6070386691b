"""Sources of images: list and read images on disk, or generate them; nothing is downloaded."""
