"""The data path: bounded, parallel, in order; both directions."""
