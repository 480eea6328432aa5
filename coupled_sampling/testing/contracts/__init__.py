"""Does somebody's part keep its contract? Providers and couplings, each fault named."""
