"""Tensors -> matplotlib figures -> pages."""
