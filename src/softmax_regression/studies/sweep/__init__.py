"""The study `sweep`, exercise 1: a search for batch size, number of epochs and learning rate."""
