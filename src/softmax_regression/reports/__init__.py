"""What is made of runs: a page of one, several compared, a list, curves, an export."""
