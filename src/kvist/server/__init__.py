"""The server: OpenAI's routes over an engine that runs in a thread of its own, and the live page."""
