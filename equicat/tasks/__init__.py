"""Tasks: losses, OC20's metrics and leaderboard files."""
