"""Where text of a language model comes from: an ollama server."""
