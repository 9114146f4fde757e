"""Figures from tensors, pages from figures, and the callbacks that draw."""
