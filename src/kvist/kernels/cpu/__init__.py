"""The CPU backend: numba with explicit vectors, one compiled loop, a team of threads."""
