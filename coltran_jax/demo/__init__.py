"""A page in the browser: photographs, known colours, samples."""
