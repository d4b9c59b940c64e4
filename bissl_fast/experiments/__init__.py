"""What many runs answer together: comparisons over seeds, ablations. Knows no stage."""
