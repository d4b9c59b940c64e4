"""The Hessian as products with vectors: the operator, its modes and its number formats."""
