"""Reports on runs: a page of one run, several runs side by side, a list, curves, an export."""
