"""askonce for LlamaIndex. Nothing is public yet: see CHANGELOG.md."""
