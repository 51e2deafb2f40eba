"""A constant, two modules away from what reads it."""

FACTOR = 1.0
