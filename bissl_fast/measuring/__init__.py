"""What `bench` measures: losses, products, feeding, views, ranks."""
