"""Runs code that a model wrote, and says whether it passes its tests, so that neither harms the run nor deceives it."""
