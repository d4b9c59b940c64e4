"""Reports of runs and comparisons: pages that are complete in themselves, their figures and maps."""
