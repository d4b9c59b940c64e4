"""View parameters drawn by compiled code; `bissl_fast.data.views.parameters.define_views` is its definition."""

from bissl_fast.ops.draw_views.function import draw_views, serves

__all__ = ["draw_views", "serves"]
