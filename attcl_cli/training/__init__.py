"""Training: the loop, what it trains and validates, its states on disk, and `attcl train` as a function."""
