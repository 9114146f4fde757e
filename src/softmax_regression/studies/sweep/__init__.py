"""Exercise 1, a search for batch size, epochs and learning rate: the study `sweep`."""
