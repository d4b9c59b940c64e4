"""Views of uint8 images in one kernel; `bissl_fast.data.pipelines.torch_pipeline` is its definition."""

from bissl_fast.ops.render_views import schemas as schemas  # declares what the compiled op returns
from bissl_fast.ops.render_views.function import INTEGERS, NUMBERS, render_views

__all__ = ["INTEGERS", "NUMBERS", "render_views"]
