"""Module paths that `modules.json` of saved models of format 3 names. New code imports `promptembedder.model`."""
