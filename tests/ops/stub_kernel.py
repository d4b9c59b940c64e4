"""A small function in Triton's language, to be compiled for tests of how kernels are launched."""

import triton.language as tl


def scale_first(x, y, count, factor, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    value = tl.load(x + at, mask=at < count) * factor
    if y is not None:
        value += tl.load(y + at, mask=at < count)
    tl.store(x + at, value, mask=at < count)
