"""Train, evaluate and compare agents under one protocol."""
