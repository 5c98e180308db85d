"""Encoding speed."""
