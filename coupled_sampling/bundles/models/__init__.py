"""Models shipped with the library."""
