"""Speech engines, each in two halves: text to tokens, tokens to sound."""
