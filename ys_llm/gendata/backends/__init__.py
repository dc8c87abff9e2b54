"""Where text of a language model comes from: a server of ollama's protocol or of OpenAI's."""
