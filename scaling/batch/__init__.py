"""What batch is worth using, and how the rest of a recipe follows it."""
