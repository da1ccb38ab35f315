"""`kvist verify`: the exactness contract, proved on a real model, bit by bit."""
