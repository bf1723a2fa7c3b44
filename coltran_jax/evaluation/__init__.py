"""How good colorizations are, in the numbers that the field prints."""
