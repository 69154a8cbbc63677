"""Reads files of known formats to arrays, with clear errors."""
