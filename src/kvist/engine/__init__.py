"""The engine: sequences, scheduling, batches, the runner, sampling. It knows no text."""
