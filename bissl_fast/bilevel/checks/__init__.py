"""What PyTorch would differentiate wrongly, and what changes between two products: seen, and refused."""
