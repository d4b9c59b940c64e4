"""Data sets: the catalogue, readers, the cache, splits."""
