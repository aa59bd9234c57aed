"""Several processes as one job: how they meet, share steps and shards, and are watched."""
