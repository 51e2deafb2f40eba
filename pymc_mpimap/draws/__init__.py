"""Draws on disk: none is lost, and the same script goes on from the last one."""
