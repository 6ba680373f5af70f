"""What is asked of a model: losses, OC20's metrics, its leaderboard files."""
