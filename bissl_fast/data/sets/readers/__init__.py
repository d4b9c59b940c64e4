"""One file per kind of data set: each lists what is on disk; nothing is decoded before the cache asks."""
