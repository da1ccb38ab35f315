"""`kvist bench`: speed as tokens per second and as a share of what this machine can do."""
