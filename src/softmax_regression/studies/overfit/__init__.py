"""Exercise 2, why test accuracy stops rising and what helps: the study `overfit`."""
