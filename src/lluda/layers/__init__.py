"""Formulas that several models use."""
