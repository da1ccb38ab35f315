"""Kernels: what a step computes (program), the plain truth (reference), and the machines that run it."""
