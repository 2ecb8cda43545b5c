"""How the processes reach each other: messages, channels, the shared-memory ring, the client."""
