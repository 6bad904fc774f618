"""The papers' experiments: one file each, with a config, ``run`` and ``figure``."""
