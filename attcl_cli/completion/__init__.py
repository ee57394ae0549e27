"""Completion of a dataset (Algorithm 1): what is missing, from what it is made, and making it."""
