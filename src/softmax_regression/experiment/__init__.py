"""An experiment: the command line of model, data and Trainer, and how a run is opened again from its configuration."""
