"""What people change first, each a few lines and a command."""
