"""Does somebody's part keep its contract? Providers, couplings and logits processors, each fault named."""
