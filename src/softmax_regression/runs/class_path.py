"""The name of a class as a configuration and a command line take it."""


def class_path_of(kind: type) -> str:
    """Return the module and the name of a class, such as `mine.Net`."""
    return f"{kind.__module__}.{kind.__qualname__}"
