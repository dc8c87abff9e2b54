"""Recurrence and loss kernels: in each file `reference` first, then the fast ones."""
