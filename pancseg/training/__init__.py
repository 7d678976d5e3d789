"""A training put together: checks, the process, data, network, trainer, and its end."""
