"""A run's folder: its name, manifest, checkpoints, and how it is interrupted and goes on."""
