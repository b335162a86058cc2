"""Geometry and cameras in, pictures out: `renderers.draw(renderers.fit(shape), preset, **keys) -> Views`.

Importing this package loads numpy only; a backend's library is imported when the backend is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from renderers.draw_shape import Views, draw, fit
    from renderers.geometry import Mesh

__all__ = ["Mesh", "Views", "draw", "fit"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from renderers import draw_shape

        return getattr(draw_shape, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
