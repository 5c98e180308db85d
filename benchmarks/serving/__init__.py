"""Requests per second of servers."""
