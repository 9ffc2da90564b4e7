"""Other people's causal networks, lowered to sampling programs."""
