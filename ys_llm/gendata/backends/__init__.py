"""Who is asked for text: an ollama server."""
