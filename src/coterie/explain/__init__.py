"""Where a classifier looks: class activation maps, attention and Grad-CAM as arrays, and sheets of them."""

from coterie.explain.explainer import ClassMap, Explainer, explain, make_explainer

__all__ = ["ClassMap", "Explainer", "explain", "make_explainer"]
