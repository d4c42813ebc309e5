"""Measurements beside peers and the machine's own ceiling; `make bench` runs them all."""
