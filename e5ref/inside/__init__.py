"""Look inside: the way of a text through the model on one page, and why two texts are near."""
