"""Weights of other code bases: their files, their names and layouts, and where they belong here."""
