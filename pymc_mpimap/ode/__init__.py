"""Solves of ordinary differential equations, with sensitivities, as PyTensor expressions."""
