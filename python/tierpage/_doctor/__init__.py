"""Private: what ``tierpage doctor`` does. ``checks`` asks a ``machine`` and makes the rows of a ``report``."""
