"""A mini-OCR: two to four letters on a tinted ground, 8x20 pixels, asked for by a string and read back."""
