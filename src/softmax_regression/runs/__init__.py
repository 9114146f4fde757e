"""The folder of a run: its name, record and checkpoints; how a run is interrupted and resumed."""
