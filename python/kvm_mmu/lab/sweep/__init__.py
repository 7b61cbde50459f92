"""Sweeps: a grid of inputs, kernels, sizes and plans, each cell a pure function of its place in the grid."""
