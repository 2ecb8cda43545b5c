"""The command line: `launch` (the supervisor and its live view) and `speak` (a client)."""
