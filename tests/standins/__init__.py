"""What tests stand on: oracles written apart from the library, broken models, and stand-ins for engines and drivers."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
"""The checkout."""
