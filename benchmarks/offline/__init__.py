"""Measurements on a GPU machine without a network."""
