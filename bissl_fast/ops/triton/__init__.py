"""The raw contrastive kernels in Triton: ``launch`` has ``fwd``, ``bwd``, ``bwd_bwd`` and ``supports``.

Nothing here is imported before the first CUDA tensor asks for it: ``import triton`` is slow.
"""
