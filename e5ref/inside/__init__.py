"""Look inside: the way of a text through the model on one page, and why two texts are near."""

from e5ref.inside.page import Page, look

__all__ = ["Page", "look"]
