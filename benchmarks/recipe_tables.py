"""Renews the tables of docs/recipes.md from the headers and keys of the files in configs/recipes.

Run with: python benchmarks/recipe_tables.py
"""

from pathlib import Path

from keras_stss.bench.tables import write_into
from keras_stss.config.recipes import recipe_tables

PAGE = Path(__file__).resolve().parent.parent / "docs" / "recipes.md"

if __name__ == "__main__":
    write_into(PAGE, "recipes", recipe_tables())
