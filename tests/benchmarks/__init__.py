"""How fast this project is, in turn with its peers; `__main__` runs it."""
