"""Softmax regression on Fashion-MNIST, a PyTorch Lightning experiment."""
