"""Fault-injection and fuzzing campaigns."""
