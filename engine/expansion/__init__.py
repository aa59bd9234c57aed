"""True parameter expansion, planned: which tensor of the larger model comes from which of the smaller one, and how."""
