"""Pictures of results.

Every function returns a matplotlib Figure, which notebooks show, and needs no display: ``figure.savefig("x.svg")``.
``interactive`` draws the same with plotly, for pages and notebooks. A band is the range of the random directions,
from the lowest to the highest, in every picture.
"""

from .circuits import faithfulness_curve
from .confusion import confusion
from .content import content, identified
from .curves import layer_curves, strength_curves
from .doses import dose_curves
from .heads import head_maps
from .lens import LensCurve, lens_curves
from .ranges import range_maps
from .readings import attention, by_layer, lens, localised
from .shifts import overview, shifts
from .style import NothingToDraw
from .vector import plot_vector

__all__ = [
    "LensCurve",
    "NothingToDraw",
    "attention",
    "by_layer",
    "confusion",
    "content",
    "dose_curves",
    "faithfulness_curve",
    "head_maps",
    "identified",
    "layer_curves",
    "lens",
    "lens_curves",
    "localised",
    "overview",
    "plot_vector",
    "range_maps",
    "shifts",
    "strength_curves",
]
