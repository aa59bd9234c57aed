"""Questions, the comparison matrix, the recommendation, the recipes and the spec they end in."""
