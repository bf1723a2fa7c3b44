"""Images: the arrays that networks see, and files."""
