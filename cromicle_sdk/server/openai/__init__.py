"""The backend for model servers that are compatible with the API of OpenAI."""
