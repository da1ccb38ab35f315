"""Model files, families and the one decoder that runs them."""
