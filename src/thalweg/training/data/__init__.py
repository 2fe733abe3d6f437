"""What a run is given: prompts with their media, from files and data sets, and the sizes they ask for."""
