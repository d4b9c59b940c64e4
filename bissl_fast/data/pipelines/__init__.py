"""From images and view parameters to batches: the definition, the loader, resident sets, DALI."""
