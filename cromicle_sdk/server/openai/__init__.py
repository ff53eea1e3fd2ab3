"""A backend in front of a model server that speaks OpenAI's API."""
