"""What `bench` measures: losses, products, feeding, views."""
