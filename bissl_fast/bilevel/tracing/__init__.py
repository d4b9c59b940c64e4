"""A product as a graph: written down once, cut at the tangent boundary, made small."""
