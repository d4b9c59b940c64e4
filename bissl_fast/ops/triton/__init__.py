"""The raw kernels in Triton: ``launch`` has those of the contrastive losses, ``batch_norm`` those of batch norm.

Nothing here is imported before the first CUDA tensor asks for it: ``import triton`` is slow.
"""
