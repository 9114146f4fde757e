"""The command lines; errors as one line."""
