"""askonce for the OpenAI SDK. Nothing is public yet: see CHANGELOG.md."""
