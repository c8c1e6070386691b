"""List and read images on disk, or generate them; nothing is downloaded."""
