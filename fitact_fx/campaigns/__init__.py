"""Many trials over fault rates and model variants."""
