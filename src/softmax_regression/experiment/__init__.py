"""The LightningCLI of model, data and Trainer, and how a run is opened again from its configuration."""
