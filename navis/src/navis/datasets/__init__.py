"""Vectors to measure with: synthetic ones, and real ones that package managers carry."""
