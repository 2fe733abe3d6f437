"""A mini-GenEval: coloured shapes on a tinted ground, 16x16 pixels, asked for in words, judged exactly."""
