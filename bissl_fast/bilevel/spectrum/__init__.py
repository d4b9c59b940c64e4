"""What is known of an operator's spectrum."""
