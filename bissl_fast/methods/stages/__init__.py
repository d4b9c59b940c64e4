"""The stages that methods are made of."""
