"""Programs that use askonce as an application would. Run them from the root of the repository."""
