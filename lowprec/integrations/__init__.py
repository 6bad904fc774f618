"""Adapters to other tools; each is a module that is imported on its own."""
