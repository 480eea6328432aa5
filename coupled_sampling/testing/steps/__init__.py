"""Two implementations of a step, site by site: every difference a float tie, or a fault."""
