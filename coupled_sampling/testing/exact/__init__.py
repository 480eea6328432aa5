"""Exact output laws: every path enumerated, with floats or with fractions, and no threshold to choose."""
