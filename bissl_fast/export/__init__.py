"""What is taken away from a run: its networks in other libraries' formats, as a module, and their predictions."""
