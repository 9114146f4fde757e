"""How fast stable and naive softmax fail, measured: the study `numerics`."""
