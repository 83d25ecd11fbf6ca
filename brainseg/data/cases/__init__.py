"""Cases that `predict` and `segment` take as input, and the masks that are written for them."""
