"""A convolution whose maps are small, as one matrix product."""

from bissl_fast.ops.convolution.function import serves, small_map_convolution

__all__ = ["serves", "small_map_convolution"]
