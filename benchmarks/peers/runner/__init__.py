"""The side that sets up engines, gives them work and writes down what came of it; the standard library only."""
