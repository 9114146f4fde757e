"""The command lines, and their errors as short messages."""
