"""Tests of the solver of differential equations and of what it is made of."""
