"""The processes that the supervisor runs: dispatcher, t3, s3gen, player."""
