"""Quality of trained models and baselines on the same tasks."""
