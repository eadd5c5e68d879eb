"""Agents without an engine: under bubblewrap, or as plain processes."""
