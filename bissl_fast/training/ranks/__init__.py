"""Many processes at one run: their start, what they agree on, and what becomes of them when one dies."""
