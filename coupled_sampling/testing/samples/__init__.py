"""Laws known by samples only: tests of equality that say what they could have seen."""
