"""The proof: what a grown model computes, measured against the model it was grown from."""
