"""Fitting the scorer offline: the rows that it learns from, its measures, tables and pictures."""
